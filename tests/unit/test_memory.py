"""What a job at work costs in memory: all that is kept of it, from its object to the claim that it has made."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from typing import Any, cast

from tests.builders import make_job
from tests.fake_cluster import FakeCluster
from tests.story import Story

from finetune_operator.apiserver import ApiServer, Request
from finetune_operator.applied import Applied
from finetune_operator.cache import Children, Own, key_of
from finetune_operator.claims import CLAIM
from finetune_operator.cluster import Cluster
from finetune_operator.decision import Ref
from finetune_operator.decoding import decode_objects
from finetune_operator.handlers import Events
from finetune_operator.meta import Key, Object
from finetune_operator.progress_reader import ProgressReader
from finetune_operator.workqueue import Rank, WorkQueue

JOBS = 200
MOST_BYTES = 11_000  # of each

# What the API server adds to each object, and no pass reads.
FIELDS = [{"manager": "finetune-operator", "fieldsV1": {"f:spec": {f"f:field-{n}": {} for n in range(40)}}}]


class Keeps:
    """The parts of the operator that keep something of each job."""

    def __init__(self) -> None:
        self.own, self.children, self.applied = Own(), Children(), Applied()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.cluster = Cluster(cast(ApiServer, self), lambda: None, "us")
        self.progress = ProgressReader(FakeCluster())
        self.events = Events(self.queue.add, self._later, self.own, self.children, self.progress)

    def _later(self, key: Key, rank: Rank) -> None:
        self.queue.add_after(key, 30, rank)

    async def json(self, request: Request) -> Any:
        """The API server's answer to what is asked by name: a claim."""
        metadata = {"name": request.path.rpartition("/")[2], "uid": "u", "managedFields": FIELDS}
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}
        return json.loads(json.dumps({"kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}))

    async def hear_of(self, job: Object, children: list[Object]) -> None:
        """All that watches tell of a job at work, a pass over it, and a status of ours."""
        self.events.ours("ADDED", job)
        self.queue.done(await self.queue.get())
        self.applied.keep_status(job)
        await self.cluster.read("default", Ref(CLAIM, f"{job['metadata']['name']}-artifacts"))
        for child in children:
            if self.children.keep(child):
                self.events.child("ADDED", child)


def at_work() -> str:
    """A job of which one step has ended and the next runs, with its children, as the API server sends them."""
    story = Story(make_job("facts"))
    story.passes()
    story.succeed()
    story.passes()
    space = story.space
    pods = [{"apiVersion": "v1", "kind": "Pod", **pod} for pod in space.pods.values()]
    objects = [story.job, *space.jobs.values(), *pods, *space.config_maps.values()]
    for number, body in enumerate(objects):
        own = {"namespace": "default", "uid": f"facts-{number}", "resourceVersion": str(number + 1), "managedFields": FIELDS}
        body["metadata"] |= own
    return json.dumps(objects)


def test_a_job_at_work_costs_little_memory() -> None:
    """The chart gives the operator 256 MiB. With whole claims each took 18,700 bytes, with no text shared 12,000."""
    pattern, keeps = at_work(), Keeps()
    assert [key_of(body).kind for body in json.loads(pattern)] == ["FineTuneJob", "Job", "Job", "Pod", "Pod", "ConfigMap"]

    async def run(begin: int, end: int) -> None:
        for number in range(begin, end):
            job, *children = decode_objects(pattern.replace("facts", f"facts-{number}"))
            await keeps.hear_of(job, children)

    asyncio.run(run(0, 10))
    tracemalloc.start()
    try:
        asyncio.run(run(10, 10 + JOBS))
        gc.collect()
        each = tracemalloc.get_traced_memory()[0] // JOBS
    finally:
        tracemalloc.stop()
    print(f"{each} bytes a job at work")
    assert each <= MOST_BYTES
