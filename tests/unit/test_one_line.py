"""What one line of progress costs, from the pod's log to the status: one read of the log, one pass, one write."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tests.builders import NOW, data_config_map, make_job, make_pod
from tests.fake_cluster import FakeCluster

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.cache import key_of
from finetune_operator.controller import Controller
from finetune_operator.decision import Decision, Observed
from finetune_operator.finetunejob import policy
from finetune_operator.handlers import Events
from finetune_operator.meta import Key, Object
from finetune_operator.progress_reader import ProgressReader
from finetune_operator.reconcile import Kind
from finetune_operator.settings import Settings
from finetune_operator.workqueue import ShutDown, WorkQueue

LINE = '{"kind": "progress", "stepName": "prepare", "step": %d, "total": 9, "activity": "fetches the model"}'
KEY = Key("FineTuneJob", "default", "facts")


class Counting:
    """The policy of a FineTuneJob, and how often it was asked."""

    reads = staticmethod(policy.reads)
    passes = 0

    def decide(self, job: FineTuneJob, observed: Observed, settings: Settings, now: datetime) -> Decision:
        self.passes += 1
        return policy.decide(job, observed, settings, now)


class EndsWhenEmpty(WorkQueue[Key]):
    async def get(self) -> Key:
        key = self._next()
        if key is None:
            raise ShutDown
        return key


class Operator:
    """The loops as __main__ puts them together, over a cluster whose watches tell of every write."""

    def __init__(self) -> None:
        self.cluster, self.policy = FakeCluster(make_job(), data_config_map() | IN_DEFAULT), Counting()
        self.queue = EndsWhenEmpty(clock=lambda: 0.0)
        self.progress = ProgressReader(self.cluster)
        own, self.children = self.cluster.caches()
        self.events = Events(self.queue.add, self.queue.add, own, self.children, self.progress)
        parts = (self.cluster, self.queue, self.progress, own, self.children, Settings(), lambda: NOW)
        kinds = {"FineTuneJob": Kind(FineTuneJob, self.policy)}
        self.controller = Controller(kinds, *parts)  # type: ignore[arg-type]
        self.queue.add(KEY)

    async def until_quiet(self) -> None:
        """Work, and hear of what came of it, until nothing is news any more."""
        told: dict[Key, str] = {}
        while news := [b for b in self.cluster.objects.values() if told.get(key_of(b)) != b["metadata"]["resourceVersion"]]:
            for body in news:
                told[key_of(body)] = body["metadata"]["resourceVersion"]
                self._tell(body)
            await self.controller.work()

    def _tell(self, body: Object) -> None:
        if body["kind"] == "FineTuneJob":
            self.events.ours("MODIFIED", body)
        elif body["kind"] in ("Job", "Pod") and self.children.keep(body):
            self.events.child("MODIFIED", body)

    async def one_round_of_reading(self) -> None:
        for key in await self.progress.read_all():
            self.queue.add(key)
        await self.until_quiet()


IN_DEFAULT: dict[str, Any] = {"metadata": {"name": "facts", "namespace": "default"}}


async def test_a_line_of_progress_costs_one_pass_and_one_write() -> None:
    operator = Operator()
    await operator.until_quiet()
    (job,) = await operator.cluster.list("Job")
    pod = make_pod(job)
    await operator.cluster.create({"kind": "Pod", **pod, "metadata": {**pod["metadata"], "namespace": "default"}})
    await operator.until_quiet()
    for number in (1, 2):
        operator.cluster.logs[pod["metadata"]["name"]] = LINE % number
        operator.policy.passes = 0
        operator.cluster.writes.clear()
        for _ in range(3):
            await operator.one_round_of_reading()
        assert operator.policy.passes == 1
        assert operator.cluster.writes == ["status FineTuneJob facts"]
        assert operator.cluster.objects[KEY]["status"]["progress"]["current"] == number
