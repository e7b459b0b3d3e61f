"""Runs cases: a namespace for each, its story, one operator behind a faulty proxy; then the oracle."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from localcluster.processes import stop
from tests.faults import oracle
from tests.faults.classes import BOTH, FaultClass
from tests.faults.pods import BEFALLS, Nth
from tests.faults.proxy import BEHIND_SECONDS, Fault, Told, Writes
from tests.faults.stage import Stage
from tests.faults.stories import STORIES, NoEffect, Scene
from tests.integration.conftest import Operator, World
from tests.waiting import lasts, slowness

SILENT_SECONDS = 3.0  # without a write, after which a case counts as settled on a quiet machine
SETTLING_SECONDS = 300.0  # likewise
UNDISTURBED = FaultClass("undisturbed", "none")
ENVIRONMENT = {
    "FINETUNE_LEADER_ELECTION": "false",
    "FINETUNE_ENDED_SECONDS": "2",
    "FINETUNE_RESYNC_SECONDS": "60",
    "FINETUNE_PROGRESS_SECONDS": "5",
    "FINETUNE_WORKERS": "8",
}


@dataclass
class Case:
    """One fault at one write of one story."""

    fault_class: FaultClass
    kind: str
    at: int
    space: str = ""
    differences: list[str] = field(default_factory=list)
    struck: bool = False
    later: int = 0  # writes after it had settled

    def __str__(self) -> str:
        return f"{self.fault_class.name}, {self.kind}, write {self.at} ({self.space})"


@dataclass
class Reference:
    """What an undisturbed run comes to."""

    writes: int
    reads: int
    pods: int
    end: list[str]
    loose: list[str]
    creations: Counter[str]


References = dict[str, Reference]


class Sweep:
    """A control plane's whole sweep."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._references: References = {}
        self._number = 0
        self._pods: dict[str, Nth] = {}
        self.used: dict[str, set[str]] = {}  # verbs by resource

    async def __aenter__(self) -> Sweep:
        stop(self._world.plane.directory, "kube-scheduler")  # the stage plays the nodes; no pod is bound to one
        self.stage = await Stage(self._world).__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stage.__aexit__()

    async def references(self) -> References:
        """Undisturbed runs, two of each kind: what differs between them is no fault's doing."""
        cases = [Case(UNDISTURBED, kind, 0) for kind in BOTH for _ in range(2)]
        async with self._operator() as (proxy, _):
            scenes = await asyncio.gather(*(self._play(case, proxy) for case in cases))
        for case, scene in zip(cases, scenes, strict=True):
            assert not case.differences, (case, case.differences)
            told = proxy.told[case.space]
            print(f"undisturbed {case.kind}: {told.sent} writes, {told.read} reads", flush=True)
            pods, loose = self._pods[case.space].seen, oracle.end_state(scene, loose=True)
            found = Reference(told.sent, told.read, pods, oracle.end_state(scene), loose, oracle.creations(scene))
            known = self._references.setdefault(case.kind, found)
            assert (text := oracle.difference(known.end, found.end)) == "", text
            assert known.creations == found.creations, (known.creations, found.creations)
        return self._references

    async def run(self, cases: Sequence[Case]) -> None:
        """Cases that share an operator."""
        places = asyncio.Semaphore(cases[0].fault_class.at_once)
        async with self._operator() as (proxy, watchdog):
            proxy.strike = lambda space, fault: _befall(proxy, watchdog.operator, space, fault)

            done = itertools.count(1)

            async def one(case: Case) -> tuple[Scene, Told]:
                async with places:
                    scene = await self._play(case, proxy)
                if (number := next(done)) % 20 == 0 or case.differences:
                    print(f"{number:>8} of {len(cases)}: {case} {case.differences}".removesuffix(" []"), flush=True)
                return scene, replace(proxy.told[case.space])

            played = await asyncio.gather(*(one(case) for case in cases))
            on_old_lists = any(case.fault_class.fault == "old lists" for case in cases)
            for case, (scene, told) in zip(cases, played, strict=True):
                now = proxy.told[case.space]
                # What an operator that was shown old lists sends is refused, and that is what it is to come to.
                case.later = now.taken - told.taken if on_old_lists else now.sent - told.sent
                self._judge(case, scene, proxy)
            if any(case.differences for case in cases):
                (Path(tempfile.gettempdir()) / "faults-operator.log").write_text(watchdog.operator.log)
            if watchdog.died:
                cases[0].differences.append(f"the operator died by itself: {watchdog.died[0]}")

    async def _play(self, case: Case, proxy: Writes) -> Scene:
        self._number += 1
        case.space = f"case-{self._number}"
        scene = Scene(self.stage, case.space, case.kind)
        proxy.faults[case.space] = fault = Fault(
            case.fault_class.fault, case.at, case.fault_class.times, case.fault_class.of == "reads"
        )
        of_pods = case.fault_class.of == "pods"
        if case.at == 0 or of_pods:
            fault.times = 0
        befall = BEFALLS[case.fault_class.fault] if of_pods else None
        self.stage.befalls[case.space] = self._pods[case.space] = Nth(self.stage, case.at, befall)
        proxy.told[case.space] = Told()
        await self.stage.request("POST", "/api/v1/namespaces", {"metadata": {"name": case.space}})
        self.stage.endings[case.space] = scene.ending
        try:
            await STORIES[case.kind](scene)
            await self._settled(scene, proxy)
        except NoEffect as error:
            case.differences.append(f"waited in vain until {error}")
        case.struck = self._pods[case.space].seen >= case.at if of_pods else fault.struck > 0
        fault.times = 0  # what did not come to pass by then strikes nobody who looks on
        return scene

    async def _settled(self, scene: Scene, proxy: Writes) -> None:
        """Return when all stands as the story leaves it, the operator has written nothing for a while, and no step's Job is
        left to remove.

        Not before the fault is over: a write that arrives 40 s late changes the cluster then, and is answered then.
        """
        told, end = proxy.told[scene.space], time.monotonic() + SETTLING_SECONDS * slowness()
        fault = proxy.faults[scene.space]
        while time.monotonic() < end:
            silent = time.monotonic() - told.last > SILENT_SECONDS * slowness() and not fault.under_way
            if silent and scene.is_at_its_end() and not self._left(scene):
                return
            await lasts(0.3)
        raise NoEffect("it is silent")

    def _left(self, scene: Scene) -> bool:
        return scene.kind == "FineTuneJob" and any(
            "gate" not in j["metadata"]["name"] for j in scene.stage.list(scene.space, "Job")
        )

    def _judge(self, case: Case, scene: Scene, proxy: Writes) -> None:
        wanted = self._references[case.kind]
        now = proxy.told[case.space]
        if not case.differences and case.later:
            case.differences.append(f"it wrote {case.later} times after it had settled: {now.requests[-3:]}")
        broken = dict.fromkeys(oracle.broken_promises(scene, self._pods[case.space].struck))
        if case.fault_class.fault == "late":  # a Job whose time was over is made anew, and removed again
            broken = {text: None for text in broken if not text.startswith(oracle.TWO_AT_WORK)}
        case.differences += broken
        loose = case.fault_class.jobs > 0
        end = oracle.end_state(scene, loose=loose)
        if text := oracle.difference(wanted.loose if loose else wanted.end, end):
            case.differences.append(text)
        made = oracle.creations(scene)
        more, fewer = made - wanted.creations, wanted.creations - made
        explained = Counter({"+Job": case.fault_class.jobs, "-Job": case.fault_class.jobs})
        if case.fault_class.fault == "late":  # what it makes may have had its time by then: it is removed again
            explained = Counter(change for change in more if {f"+{change[1:]}", f"-{change[1:]}"} <= more.keys())
        if fewer or more - explained:
            case.differences.append(f"created and deleted: more {dict(more)}, fewer {dict(fewer)}")
        if case.differences:
            print(
                f"\n✗ {case}\n  " + "\n  ".join(case.differences) + "\n  requests:\n    " + "\n    ".join(now.requests),
                flush=True,
            )

    @contextlib.asynccontextmanager
    async def _operator(self) -> AsyncIterator[tuple[Writes, Watchdog]]:
        directory = Path(tempfile.mkdtemp(prefix="finetune-faults-"))
        operator = Operator(self._world, directory, ("-m", "finetune_operator"), ENVIRONMENT, Writes)
        proxy = operator.proxy
        assert isinstance(proxy, Writes)
        watchdog = Watchdog(operator)
        watching = asyncio.create_task(watchdog.watch())
        try:
            operator.start()
            yield proxy, watchdog
        finally:
            watching.cancel()
            operator.close()
            for resource, verbs in proxy.used.items():
                self.used.setdefault(resource, set()).update(verbs)
            refused = operator.refusals()
            assert not refused, refused
            shutil.rmtree(directory)


class Watchdog:
    """Starts the operator again, as a Deployment does; `died` has the last words of those that nobody killed."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.died: list[str] = []

    async def watch(self) -> None:
        while True:
            await lasts(0.05)
            process = self.operator.process
            if process is not None and (status := process.poll()) is not None:
                if status != -9:
                    self.died.append(f"exit status {status}: {self.operator.log[-1500:]}")
                self.operator.start()


def _befall(proxy: Writes, operator: Operator, space: str, fault: Fault) -> None:
    """What a fault does besides what it does to the write; called in the proxy's thread."""
    match fault.name:
        case "crash" | "old lists":
            assert operator.process is not None
            operator.process.kill()
        case "behind":
            proxy.behind_until[space] = time.monotonic() + BEHIND_SECONDS
        case "watches cut":
            proxy.cut_watches()
        case "watches gone":
            proxy.cut_watches(gone=True)
