"""Progress: the last line that is one, by pod; owners are woken by news only."""

from __future__ import annotations

from tests.fake_cluster import FakeCluster

from finetune_operator.errors import Unavailable
from finetune_operator.meta import Key
from finetune_operator.progress_reader import ProgressReader, last_progress

OWNER = Key("FineTuneJob", "default", "facts")
LINE = '{"kind": "progress", "stepName": "train", "step": 3}'


def test_the_last_progress_line_is_found_among_others() -> None:
    tail = f'Loading weights\n{{"kind": "progress", "step": 1}}\n{LINE}\n{{"loss": 1}}\n{{"kind": "progress", "st'
    assert last_progress(tail) == {"kind": "progress", "stepName": "train", "step": 3}
    assert last_progress("no\nlines\n[1]\n{}\n") is None
    assert last_progress("") is None


async def test_owners_are_told_of_news_once() -> None:
    cluster = FakeCluster()
    reader = ProgressReader(cluster)
    reader.watch("default", "facts-train-1", OWNER)
    cluster.logs["facts-train-1"] = LINE
    assert await reader.read_all() == {OWNER}
    assert await reader.read_all() == set()
    assert reader.of(OWNER) == {"facts-train-1": {"kind": "progress", "stepName": "train", "step": 3}}
    assert reader.of(OWNER._replace(namespace="other")) == {}


async def test_a_pod_that_is_gone_is_forgotten() -> None:
    cluster = FakeCluster()
    reader = ProgressReader(cluster)
    reader.watch("default", "facts-train-1", OWNER)
    cluster.logs["facts-train-1"] = LINE
    await reader.read_all()
    del cluster.logs["facts-train-1"]
    assert await reader.read_all() == set()
    assert reader.of(OWNER) == {}


async def test_a_log_that_cannot_be_read_keeps_the_last_line() -> None:
    class Flaky(FakeCluster):
        away = False

        async def log_tail(self, namespace: str, pod: str, lines: int) -> str:
            if self.away:
                raise Unavailable("the kubelet does not answer")
            return await super().log_tail(namespace, pod, lines)

    cluster = Flaky()
    reader = ProgressReader(cluster)
    reader.watch("default", "facts-train-1", OWNER)
    cluster.logs["facts-train-1"] = LINE
    await reader.read_all()
    cluster.away = True
    assert await reader.read_all() == set()
    assert "facts-train-1" in reader.of(OWNER)


async def test_a_line_nested_without_end_is_passed_over() -> None:
    deep = '{"kind": "progress", "a":' + '{"a":' * 1500 + "1" + "}" * 1501
    assert last_progress(f"{LINE}\n{deep}") == {"kind": "progress", "stepName": "train", "step": 3}


async def test_a_log_that_breaks_the_reading_of_it_stops_no_other() -> None:
    class Broken(FakeCluster):
        async def log_tail(self, namespace: str, pod: str, lines: int) -> str:
            if pod == "broken":
                raise RecursionError
            return await super().log_tail(namespace, pod, lines)

    cluster = Broken()
    reader = ProgressReader(cluster)
    reader.watch("default", "broken", OWNER._replace(name="other"))
    reader.watch("default", "facts-train-1", OWNER)
    cluster.logs["facts-train-1"] = LINE
    assert await reader.read_all() == {OWNER}
