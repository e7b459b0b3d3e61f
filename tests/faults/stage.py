"""All namespaces of the sweep as an independent observer sees them, and the nodes: pods that run and end as their case says.

API server ──watch──► Stage ─┬─► objects and history of each namespace       (not through the operator's proxy)
                             └─► pods: Running, Ready, ended
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from tests.builders import make_result
from tests.integration.conftest import World
from tests.waiting import lasts

from finetune_operator.names import LABEL_GATE, LABEL_REVISION, LABEL_STEP
from finetune_operator.resources import RESOURCES
from finetune_trainer.contract.pipeline import PREPARE
from finetune_trainer.contract.reports import Termination
from finetune_trainer.contract.run import RunConfig

Object = dict[str, Any]
NOT_WATCHED = ("Secret", "Lease", "Event", "HTTPRoute")  # the last is of an API that the sweep has not installed
KINDS = tuple(kind for kind in RESOURCES if kind not in NOT_WATCHED)
MERGE = {"Content-Type": "application/merge-patch+json"}
Report = tuple[int, str]  # exit code and termination message
Ending = Callable[[Object], "Report | None"]  # None: it goes on running


@dataclass(frozen=True)
class Change:
    """One event of a watch. Versions of all kinds are one sequence: etcd's."""

    version: int
    type: str
    kind: str
    body: Object


class Refused(Exception):
    """The API server's answer to a request of the test's own."""


class Stage:
    """`objects` and `history` by namespace. All of it lives in one event loop."""

    def __init__(self, world: World) -> None:
        self.objects: dict[str, dict[tuple[str, str], Object]] = defaultdict(dict)
        self.history: dict[str, list[Change]] = defaultdict(list)
        self.endings: dict[str, Ending] = {}  # by namespace
        self.befalls: dict[str, Callable[[Object], Awaitable[bool]]] = {}
        self.done: dict[str, set[str]] = defaultdict(set)  # steps whose output lies in the store, which prepare tells of
        self._events: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._world = world
        self._running: dict[str, asyncio.Task[None]] = {}  # pods, by uid
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Stage:
        connector = aiohttp.TCPConnector(ssl=self._world.api.context, limit=64)
        root = f"https://{self._world.api.host}:{self._world.api.port}"
        self._session = aiohttp.ClientSession(root, connector=connector, read_bufsize=2**22)
        versions = [await self._version(kind) for kind in KINDS]
        self._tasks = [asyncio.create_task(self._watch(*one)) for one in zip(KINDS, versions, strict=True)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (*self._tasks, *self._running.values()):
            task.cancel()
        await self._session.close()

    async def request(self, method: str, path: str, body: Object | None = None, **headers: str) -> Object:
        """One request of an administrator. Raises Refused."""
        kind = headers.get("content_type", "application/json")
        data = None if body is None else json.dumps(body)
        async with self._session.request(method, path, data=data, headers={"Content-Type": kind}) as answer:
            found: Object = await answer.json()
            if answer.status >= 300:
                raise Refused(f"{method} {path}: {answer.status} {found.get('message')}")
            return found

    async def patch(self, kind: str, space: str, name: str, body: Object) -> Object:
        return await self.request("PATCH", RESOURCES[kind].path(space, name), body, content_type=MERGE["Content-Type"])

    def get(self, space: str, kind: str, name: str) -> Object | None:
        return self.objects[space].get((kind, name))

    def list(self, space: str, kind: str) -> list[Object]:
        return [body for (k, _), body in self.objects[space].items() if k == kind]

    def wake(self, space: str) -> None:
        """Something happened that no event tells of."""
        self._events[space].set()

    async def until(self, space: str, true: Callable[[], object], seconds: float) -> bool:
        """Whether it became true in time."""
        end = time.monotonic() + seconds
        while not true():
            for task in self._tasks:
                if task.done():
                    task.result()  # an observer that sees no more judges nothing
            if (left := end - time.monotonic()) <= 0:
                return False
            self._events[space].clear()
            try:
                await asyncio.wait_for(self._events[space].wait(), left)
            except TimeoutError:
                continue
        return True

    async def _version(self, kind: str) -> str:
        """From where a watch starts. The API server takes a moment for kinds that are new to it."""
        while True:
            with contextlib.suppress(Refused):
                found = await self.request("GET", RESOURCES[kind].path(""))
                return str(found["metadata"]["resourceVersion"])
            await lasts(0.2)

    async def _watch(self, kind: str, version: str) -> None:
        path = RESOURCES[kind].path("")
        while True:
            query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "3000"}
            async with self._session.get(path, params=query, timeout=aiohttp.ClientTimeout(total=None)) as answer:
                async for line in answer.content:
                    event = json.loads(line)
                    assert event["type"] != "ERROR", event
                    version = event["object"]["metadata"]["resourceVersion"]
                    self._seen(event["type"], kind, event["object"])

    def _seen(self, type: str, kind: str, body: Object) -> None:
        meta = body["metadata"]
        meta.pop("managedFields", None)
        space, key = meta["namespace"], (kind, meta["name"])
        self.history[space].append(Change(int(meta["resourceVersion"]), type, kind, body))
        if type == "DELETED":
            self.objects[space].pop(key, None)
        else:
            self.objects[space][key] = body
        if kind == "Pod" and space in self.endings:
            self._play(type, body)
        self._events[space].set()

    # ── nodes ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _play(self, type: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if type == "DELETED":
            if (task := self._running.pop(uid, None)) is not None:
                task.cancel()
        elif uid not in self._running:
            self._running[uid] = task = asyncio.create_task(self._run(pod))
            task.add_done_callback(_shown)

    async def _run(self, pod: Object) -> None:
        if await self.befalls[pod["metadata"]["namespace"]](pod):
            return
        while is_of_step(pod) and self.run_json(pod) is None:  # a kubelet, too, waits for what a pod mounts
            await lasts(0.1)
        if self.endings[pod["metadata"]["namespace"]](pod) is None:
            await self.say(pod, running(pod))
        await self.say(pod, ended(pod, *await self.ending(pod)))

    async def ending(self, pod: Object) -> Report:
        """How a pod ends, once its case can tell."""
        while (ending := self.endings[pod["metadata"]["namespace"]](pod)) is None:
            await lasts(0.1)
        return ending

    async def say(self, pod: Object, status: Object) -> None:
        """What the kubelet would write of this pod."""
        meta = pod["metadata"]
        path = RESOURCES["Pod"].path(meta["namespace"], meta["name"], "status")
        body = {"metadata": {"uid": meta["uid"]}, "status": status}
        async with self._session.patch(path, data=json.dumps(body), headers=MERGE) as answer:
            if answer.status not in (200, 404, 409):
                raise Refused(await answer.text())

    def report(self, pod: Object) -> Report:
        """What a good trainer reports, by the run that its pod mounts; a gate's answers are good, too."""
        if not is_of_step(pod):
            return 0, Termination().model_dump_json()
        step, said = pod["metadata"]["labels"][LABEL_STEP], self.run_json(pod)
        assert said is not None
        done = tuple(sorted(self.done[pod["metadata"]["namespace"]])) if step == PREPARE else ()
        self.commit(pod)
        result = make_result(RunConfig.model_validate_json(said), step, done=done)
        return 0, Termination(result=result).model_dump_json(by_alias=True, exclude_none=True)

    def run_json(self, pod: Object) -> str | None:
        """The configuration of the run that a step's pod mounts, once a watch has told of it."""
        mounted = [v["configMap"]["name"] for v in pod["spec"]["volumes"] if "configMap" in v]
        maps = [body for name in mounted if (body := self.get(pod["metadata"]["namespace"], "ConfigMap", name))]
        return next((m["data"]["run.json"] for m in maps if "run.json" in m["data"]), None)

    def commit(self, pod: Object) -> None:
        """A step's pod has done its work: the store has its output, whether the report of it arrives or not."""
        step = pod["metadata"]["labels"].get(LABEL_STEP, PREPARE)
        self.done[pod["metadata"]["namespace"]] |= {step} - {PREPARE}


def _shown(task: asyncio.Task[None]) -> None:
    """Shows what a pod's player died of; the case fails by itself, as its pod does nothing."""
    if not task.cancelled() and (error := task.exception()) is not None:
        print(f"a pod's player ended: {error!r}", flush=True)


def is_of_step(pod: Object) -> bool:
    return LABEL_STEP in pod["metadata"]["labels"]


def is_engine(pod: Object) -> bool:
    return LABEL_REVISION in pod["metadata"]["labels"]


def is_gate(pod: Object) -> bool:
    return LABEL_GATE in pod["metadata"]["labels"]


def is_step(pod: Object, name: str) -> bool:
    return bool(pod["metadata"]["labels"].get(LABEL_STEP) == name)


def running(pod: Object) -> Object:
    began = now()
    states = _containers(pod, {"running": {"startedAt": began}}, ready=True)
    return {"phase": "Running", "startTime": began, "conditions": ready(began, "True"), "containerStatuses": states}


def ended(pod: Object, code: int, message: str) -> Object:
    at = now()
    state = {"terminated": {"exitCode": code, "message": message, "startedAt": at, "finishedAt": at}}
    return {
        "phase": "Failed" if code else "Succeeded",
        "startTime": at,
        "conditions": ready(at, "False"),
        "containerStatuses": _containers(pod, state, ready=False),
    }


def ready(since: str, status: str) -> list[Object]:
    return [{"type": t, "status": status, "lastTransitionTime": since} for t in ("Ready", "ContainersReady")]


def _containers(pod: Object, state: Object, *, ready: bool) -> list[Object]:
    names = [c["name"] for c in pod["spec"]["containers"]]
    return [{"name": n, "image": "none", "imageID": "", "ready": ready, "restartCount": 0, "state": state} for n in names]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
