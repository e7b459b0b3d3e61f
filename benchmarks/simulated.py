"""What is around an operator whose cost is measured: people who create jobs, and nodes on which pods run for a second.

people ── jobs ──► API server ◄── pods' status ── nodes
                       └── children that have ended ──► when the operator could know
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from tests.integration.conftest import World

SPACE = "scale"
POD_SECONDS = 1.0
AT_ONCE = 20  # requests of the simulation
MERGE = {"Content-Type": "application/merge-patch+json"}

Object = dict[str, Any]
Get = Callable[[str], Awaitable[Object]]


async def nothing(_get: Get, _pod: Object) -> str:
    """What a pod says at its end that says nothing."""
    return ""


@dataclass(frozen=True)
class Played:
    """One kind of job, as the simulation knows it."""

    objects: str  # path at which jobs are created
    body: Callable[[int], Object]
    selector: str  # of their pods
    container: str
    children: str  # path of those whose end the operator waits for, with their selector
    label: str  # on them: the name of the job
    over: Callable[[Object], bool]
    report: Callable[[Get, Object], Awaitable[str]] = nothing


class Simulation:
    """Creates the jobs and plays the nodes: each pod runs for a while and ends well."""

    def __init__(self, world: World, played: Played, jobs: int) -> None:
        self._world = world
        self._played = played
        self._jobs = jobs
        self._seen: set[str] = set()
        self._over: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.ends: list[tuple[str, float]] = []  # job, and when a watch told that one of its children has ended
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def _main(self) -> None:
        async with a_session(self._world) as self._session:
            with contextlib.suppress(aiohttp.ClientError):  # the API server is gone: the measurement is over
                await asyncio.gather(self._nodes(), self._ends(), self._people())

    async def _people(self) -> None:
        await at_once(self._jobs, self._create)

    async def _create(self, number: int) -> None:
        await post(self._session, self._played.objects, self._played.body(number))

    async def _nodes(self) -> None:
        async for pod in self._watch(f"/api/v1/namespaces/{SPACE}/pods?labelSelector={self._played.selector}"):
            if pod["metadata"]["name"] not in self._seen:
                self._seen.add(pod["metadata"]["name"])
                task = asyncio.create_task(self._run(pod))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _ends(self) -> None:
        async for child in self._watch(self._played.children):
            if child["metadata"]["name"] not in self._over and self._played.over(child):
                self._over.add(child["metadata"]["name"])
                self.ends.append((child["metadata"]["labels"][self._played.label], time.monotonic()))

    async def _watch(self, url: str) -> AsyncIterator[Object]:
        while True:
            async with self._session.get(f"{url}&watch=true", timeout=aiohttp.ClientTimeout(total=None)) as response:
                async for line in response.content:
                    found = json.loads(line)["object"]
                    if found["metadata"].get("name"):
                        yield found

    async def _run(self, pod: Object) -> None:
        began = pod["metadata"]["creationTimestamp"]
        await self._patch(pod, {"phase": "Running"}, {"running": {"startedAt": began}})
        await asyncio.sleep(POD_SECONDS)
        times = {"startedAt": began, "finishedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        ended = {"exitCode": 0, "message": await self._played.report(self._get, pod), **times}
        await self._patch(pod, {"phase": "Succeeded"}, {"terminated": ended})

    async def _patch(self, pod: Object, status: Object, state: Object) -> None:
        container = {"name": self._played.container, "image": "none", "imageID": "", "restartCount": 0, "state": state}
        status |= {"startTime": pod["metadata"]["creationTimestamp"]}
        status |= {"containerStatuses": [container | {"ready": "running" in state}]}
        url = f"/api/v1/namespaces/{SPACE}/pods/{pod['metadata']['name']}/status"
        async with self._session.patch(url, json={"status": status}, headers=MERGE) as response:
            if response.status != 404:
                response.raise_for_status()

    async def _get(self, url: str) -> Object:
        async with self._session.get(url) as response:
            found: Object = await response.json()
            return found


def a_session(world: World) -> aiohttp.ClientSession:
    """Connections to the API server as its administrator."""
    connector = aiohttp.TCPConnector(ssl=world.api.context, limit=AT_ONCE + 3)
    root = f"https://{world.api.host}:{world.api.port}"
    return aiohttp.ClientSession(root, connector=connector, read_bufsize=2**21)


async def at_once(count: int, do: Callable[[int], Awaitable[None]]) -> None:
    """Do something so many times, a few at a time."""
    gate = asyncio.Semaphore(AT_ONCE // 2)

    async def one(number: int) -> None:
        async with gate:
            await do(number)

    await asyncio.gather(*(one(number) for number in range(count)))


async def post(session: aiohttp.ClientSession, path: str, body: Object) -> Object:
    """What was made of it."""
    async with session.post(path, json=body) as response:
        response.raise_for_status()
        made: Object = await response.json()
        return made
