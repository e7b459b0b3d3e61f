"""The loops: what a pass's end does to the queue, what a resync wakes, and when a dead watch is noticed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import generate_latest
from tests.fake_cluster import FakeCluster

from finetune_operator import metrics
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.controller import Controller, WatchDied
from finetune_operator.decision import Decision, Observed, Reads
from finetune_operator.errors import Conflict, NotLeader, Refused, Unavailable
from finetune_operator.meta import API_VERSION, Key, Object
from finetune_operator.progress_reader import ProgressReader
from finetune_operator.reconcile import Kind
from finetune_operator.settings import Settings
from finetune_operator.workqueue import Rank, ShutDown, WorkQueue

KEY = Key("FineTuneJob", "default", "facts")
JOB: Object = {
    "apiVersion": API_VERSION,
    "kind": "FineTuneJob",
    "metadata": {"name": "facts", "namespace": "default", "uid": "u", "generation": 1},
    "spec": {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}},
}


class Policy:
    def __init__(self, *outcomes: Decision | Exception) -> None:
        self.outcomes = list(outcomes)

    def reads(self, own: FineTuneJob) -> Reads:
        return Reads({}, ())

    def decide(self, own: FineTuneJob, observed: Observed, settings: Settings, now: datetime) -> Decision:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Over(Exception):
    """The test has seen what it wants to see."""


class EndsWhenEmpty(WorkQueue[Key]):
    """Its workers go home when there is nothing to do now."""

    async def get(self) -> Key:
        key = self._next()
        if key is None:
            raise ShutDown
        return key


class Setup:
    def __init__(self, *outcomes: Decision | Exception) -> None:
        self.now = 0.0
        self.cluster = FakeCluster(JOB)
        self.queue: WorkQueue[Key] = EndsWhenEmpty(clock=lambda: self.now, jitter=lambda: 0.0)
        self.own, self.children = self.cluster.caches()
        self.rounds, self.last_round = 0, 0
        self.between: dict[int, Callable[[], None]] = {}
        kinds = {"FineTuneJob": Kind(FineTuneJob, Policy(*outcomes))}
        self.controller = Controller(
            kinds,
            self.cluster,  # type: ignore[arg-type]
            self.queue,
            ProgressReader(self.cluster),
            self.own,
            self.children,
            Settings(),
            lambda: datetime(2026, 11, 23, tzinfo=UTC),
            self.sleep,
        )

    async def sleep(self, _: float) -> None:
        """A round of the resync has ended: what the test wants to happen then, or the end of the test."""
        self.rounds += 1
        if self.rounds > self.last_round:
            raise Over
        self.between.get(self.rounds, lambda: None)()

    async def resync(self, rounds: int) -> None:
        """So many of them."""
        self.last_round = rounds
        with contextlib.suppress(Over):
            await self.controller.resync()

    async def work_off(self, *times: float) -> None:
        """Let one worker do all that there is to do, the clock standing at each of these times in turn."""
        for now in (self.now, *times):
            self.now = now
            await self.controller.work()


def status(stage: str) -> Decision:
    return Decision(status={"stage": stage}, requeue_after=10)


async def test_a_pass_comes_back_when_it_asked_for_it() -> None:
    setup = Setup(status("one"), status("two"))
    setup.queue.add(KEY)
    await setup.work_off(9.9, 10)
    assert setup.cluster.objects[KEY]["status"]["stage"] == "two"


@pytest.mark.parametrize(
    ("asked", "first"),
    [({"requeue_after": 10}, "facts"), ({"tidy_after": 10}, "new"), ({"requeue_after": 10, "tidy_after": 5}, "facts")],
)
async def test_what_is_only_to_be_removed_waits_behind_what_is_new(asked: dict[str, Any], first: str) -> None:
    setup = Setup(Decision(status={"stage": "one"}, **asked))
    setup.queue.add(KEY)
    await setup.work_off()
    setup.queue.add(KEY._replace(name="new"), Rank.NEW)
    setup.now = 10
    assert (await setup.queue.get()).name == first


@pytest.mark.parametrize("error", [Unavailable("no answer"), KeyError("a policy's own fault")])
async def test_a_failed_pass_comes_back_after_a_backoff(error: Exception) -> None:
    setup = Setup(error, error, status("three"))
    setup.queue.add(KEY)
    await setup.work_off(0.5, 1.4, 1.5)
    assert setup.cluster.objects[KEY]["status"]["stage"] == "three"


def counted(metric: Any, *labels: str) -> float:
    return float(metric.labels(*labels)._value.get())


async def test_every_failed_pass_counts_as_an_error_and_a_conflict_does_not() -> None:
    errors, conflicts = metrics.RECONCILE_ERRORS, metrics.RECONCILES
    before = counted(errors, "FineTuneJob"), counted(conflicts, "FineTuneJob", "requeue")
    setup = Setup(
        *[Unavailable("no answer")] * 9,
        *[Refused("by a webhook")] * 9,
        KeyError("ours"),
        Conflict("late"),
        Decision(status={"stage": "done"}),
    )
    setup.queue.add(KEY)
    await setup.work_off(*range(1, 5000, 100))
    assert setup.cluster.objects[KEY]["status"]["stage"] == "done"
    assert counted(errors, "FineTuneJob") - before[0] == 19
    assert counted(conflicts, "FineTuneJob", "requeue") - before[1] == 1


def test_every_series_of_a_kind_stands_before_its_first_pass() -> None:
    """A rate begins at the second sample: what comes into being with the first failure hides it."""
    metrics.begin(["Other"], workers=3)
    text = generate_latest().decode()
    assert 'controller_runtime_reconcile_errors_total{controller="Other"} 0.0' in text
    assert 'controller_runtime_reconcile_total{controller="Other",result="error"} 0.0' in text
    assert 'controller_runtime_max_concurrent_reconciles{controller="Other"} 3.0' in text


async def test_the_servers_own_wish_is_heeded() -> None:
    setup = Setup(Unavailable("slow down", retry_after=20), status("two"))
    setup.queue.add(KEY)
    await setup.work_off(19.9)
    assert "status" not in setup.cluster.objects[KEY]


async def test_a_worker_ends_where_another_leads() -> None:
    setup = Setup(NotLeader("frozen"))
    setup.queue.add(KEY)
    with pytest.raises(NotLeader):
        await setup.controller.work()


async def test_all_of_ours_are_known_and_woken_before_the_first_pass() -> None:
    setup = Setup()
    serve = Key("ModelServe", "default", "bot")
    await setup.cluster.create({"kind": serve.kind, "metadata": {"name": serve.name, "namespace": serve.namespace}})
    assert setup.own.get(serve) is None
    await setup.controller.list_all()
    assert setup.own.get(KEY)
    assert setup.own.get(serve), "a job that hands over to it would think that it is missing"
    assert [await setup.queue.get() for _ in range(2)] == [KEY, serve]


async def test_the_first_list_waits_out_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup()

    def fail(*_: Any) -> Any:
        raise Unavailable("restarting")

    pages, setup.last_round = setup.cluster.pages, 2
    monkeypatch.setattr(setup.cluster, "pages", fail)
    setup.between[2] = lambda: monkeypatch.setattr(setup.cluster, "pages", pages)
    await setup.controller.list_all()
    assert setup.rounds == 2
    assert await setup.queue.get() == KEY


async def test_a_resync_wakes_everything_and_forgets_what_is_gone() -> None:
    setup = Setup()
    gone, later = KEY._replace(name="gone"), KEY._replace(name="later")
    for key, version in ((gone, "1"), (later, "99")):
        meta = {**JOB["metadata"], "name": key.name, "uid": key.name, "resourceVersion": version}
        setup.own.keep({**JOB, "metadata": meta})
    await setup.resync(1)
    assert await setup.queue.get() == KEY
    assert setup.own.get(gone) is None
    assert setup.own.get(later) is not None, "it came after the list was made"


async def test_what_happens_at_work_waits_for_no_resync() -> None:
    setup = Setup()
    await setup.resync(1)
    setup.queue.add(other := KEY._replace(name="other"))
    assert [await setup.queue.get() for _ in range(2)] == [other, KEY]


async def test_after_the_first_list_jobs_that_no_pass_has_told_of_go_before_those_that_are_done() -> None:
    setup = Setup()
    done, new = {"conditions": [{"type": "Succeeded", "status": "True"}]}, KEY._replace(name="new")
    for key, told in ((KEY, done), (new, {})):
        metadata = {**JOB["metadata"], "name": key.name, "uid": key.name, "resourceVersion": "9"}
        setup.cluster.objects[key] = {**JOB, "metadata": metadata, "status": told}
    await setup.controller.list_all()
    assert [await setup.queue.get() for _ in range(2)] == [new, KEY]


async def changed(setup: Setup) -> Object:
    """The object after a change of which no event has told."""
    body = setup.cluster.objects[KEY]
    return await setup.cluster.replace({**body, "spec": body["spec"] | {"suspend": True}})


async def test_a_watch_that_missed_a_change_for_a_whole_resync_is_dead() -> None:
    setup = Setup()
    await changed(setup)
    with pytest.raises(WatchDied, match="FineTuneJob/default/facts"):
        await setup.resync(5)


async def test_a_change_just_before_a_resync_is_no_alarm() -> None:
    setup = Setup()
    body = await changed(setup)

    def event() -> None:  # it comes a little late
        setup.own.keep(body)

    setup.between[2] = event
    await setup.resync(6)
    assert setup.rounds > 6


async def test_a_resync_waits_out_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup()

    async def fail(*_: Any) -> tuple[dict[Key, int], int]:
        raise Unavailable("restarting")

    monkeypatch.setattr(setup.cluster, "versions", fail)
    await setup.resync(5)
    assert setup.rounds > 5


async def test_a_written_status_wakes_whom_it_concerns() -> None:
    setup = Setup(Decision(status={"stage": "Serving"}))
    serve = {"kind": "ModelServe", "metadata": {"name": "bot", "namespace": "default", "uid": "b", "resourceVersion": "1"}}
    setup.own.keep({**serve, "spec": {"model": {"jobRef": {"name": "facts"}}}})
    await setup.controller._one_pass(KEY)
    assert await setup.queue.get() == Key("ModelServe", "default", "bot")
