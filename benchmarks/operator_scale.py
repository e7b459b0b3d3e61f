"""What the operator costs: requests, writes and CPU time for each Job that it starts, memory for 1,000 FineTuneJobs, silence.

    PYTHONPATH=operator:trainer_image:. python benchmarks/operator_scale.py [--jobs 1000] [--ends N] [--finished 0] [--beside]
        [--code DIR]

A real API server, with its Job controller and scheduler; pods are simulated: they run for a second and report success.
--ends ends the measurement once so many steps have ended: ten thousand jobs would take more than an hour.
--finished restores so many FineTuneJobs that have succeeded before the operator starts. --beside measures Kubeflow's
training-operator after it, with PyTorchJobs of one pod, and prints ratios. --code is the folder `operator` of another checkout.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import finished
import training_operator
from simulated import SPACE, Get, Object, Played, Simulation
from tests.builders import make_result
from tests.integration.conftest import FINETUNE, ROOT, Operator, World, a_world
from tests.integration.fake_node import MANAGED
from tests.integration.fault_proxy import WRITES
from tests.waiting import wait_until

from finetune_trainer.contract.reports import Termination
from finetune_trainer.contract.run import RunConfig

ENDED_SECONDS, IDLE_SECONDS, CALM_SECONDS = 5.0, 20.0, 8.0
SPEC: Object = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}, "parallelism": {"gpusPerNode": 0}}


class Reports:
    """What our steps say at their end."""

    def __init__(self) -> None:
        self._runs: dict[str, RunConfig] = {}

    async def of(self, get: Get, pod: Object) -> str:
        """The termination message of a pod that has done its step."""
        name = next(v["configMap"]["name"] for v in pod["spec"]["volumes"] if v["name"] == "run")
        if name not in self._runs:
            found = await get(f"/api/v1/namespaces/{SPACE}/configmaps/{name}")
            self._runs[name] = RunConfig.model_validate_json(found["data"]["run.json"])
        result = make_result(self._runs[name], pod["metadata"]["labels"]["finetune.dev/step"])
        return Termination(result=result).model_dump_json(by_alias=True, exclude_none=True)


def job(number: int) -> Object:
    """A FineTuneJob of four steps."""
    meta = {"name": f"job-{number}", "namespace": SPACE}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": meta, "spec": SPEC}


def ours() -> Played:
    """Our jobs: a step's Job that is complete is what the operator waits for."""
    return Played(
        objects=f"{FINETUNE}/namespaces/{SPACE}/finetunejobs",
        body=job,
        selector=MANAGED.partition("=")[2],
        container="step",
        children=f"/apis/batch/v1/namespaces/{SPACE}/jobs?{MANAGED}",
        label="finetune.dev/job",
        over=lambda child: any(c["type"] == "Complete" for c in child["status"].get("conditions") or ()),
        report=Reports().of,
    )


@dataclass(frozen=True)
class Process:
    """What the kernel counts of a process."""

    pid: int

    def cpu_seconds(self) -> float:
        """CPU time that it has taken."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def resident_mb(self) -> float:
        """Memory that it holds."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1000


@dataclass(frozen=True)
class Cost:
    """Figures of one operator, as they are printed and compared."""

    starts_a_second: float
    cpu_ms: float  # of these four, each for one Job or pod that it started
    requests: float
    writes: float
    late_ms: tuple[float, float]  # from a child's end to the status write that follows: median and 99th percentile
    grown_mb: float  # a 1,000 jobs

    def lines(self) -> list[str]:
        """The figures with their names."""
        half, most = self.late_ms
        return [
            f"{self.starts_a_second:.1f} starts a second",
            f"a start: {self.cpu_ms:.1f} ms of CPU, {self.requests:.1f} requests, {self.writes:.1f} writes",
            f"from a child's end to the status write that follows: {half:.0f} ms, p99 {most:.0f} ms",
            f"{self.grown_mb:.1f} MB a 1,000 jobs at most",
        ]


def counted(operator: Operator, since: int = 0) -> list[Any]:
    """Requests but for the election's and the watches'."""
    return [r for r in operator.proxy.requests[since:] if "leases" not in r.path and "watch=true" not in r.query]


def succeeded(world: World, objects: str) -> int:
    found = world.items(objects)
    return sum(
        any((c["type"], c["status"]) == ("Succeeded", "True") for c in j.get("status", {}).get("conditions", ())) for j in found
    )


def lateness(requests: list[Any], objects: str, ends: list[tuple[str, float]]) -> tuple[float, float]:
    """Milliseconds from each end to the first write of its job's status: the median, and the 99th percentile."""
    written: dict[str, list[float]] = {}
    for r in requests:
        if r.method in WRITES and r.code < 300 and r.path.startswith(f"{objects}/") and r.path.endswith("/status"):
            written.setdefault(r.path.split("/")[-2], []).append(r.at)
    found = []
    for name, at in ends:
        times = written.get(name, [])
        if (place := bisect_left(times, at)) < len(times):
            found.append(1000 * (times[place] - at))
    found.sort()
    return found[len(found) // 2], found[min(len(found) - 1, len(found) * 99 // 100)]


def measure(world: World, operator: Operator, played: Played, jobs: int, started: str, most: int | None = None) -> Cost:
    """What the operator costs while so many jobs run to their end, or until so many of what it starts, whose plural name is
    `started`, have ended.
    """
    time.sleep(CALM_SECONDS)
    assert operator.process is not None
    process = Process(operator.process.pid)
    before, memory = process.cpu_seconds(), process.resident_mb()
    since, begin = len(operator.proxy.requests), time.monotonic()
    simulation = Simulation(world, played, jobs)
    simulation.start()
    peak, ends, enough = memory, -1, most or math.inf
    # All jobs in one list take the API server seconds: it is asked only once no child has ended for a moment.
    while len(simulation.ends) < enough and (len(simulation.ends) != ends or succeeded(world, played.objects) < jobs):
        ends = len(simulation.ends)
        time.sleep(3)
        assert operator.process.poll() is None, f"the operator died: {operator.log[-2000:]}"
        peak = max(peak, process.resident_mb())
    seconds = time.monotonic() - begin
    if most is None:
        time.sleep(ENDED_SECONDS + 5)
    spent, requests = process.cpu_seconds() - before, counted(operator, since)
    starts = sum(r.method == "POST" and r.path.endswith(f"/{started}") and r.code == 201 for r in requests)
    print(f"  jobs {jobs}, starts {starts}, {seconds:.0f} s, load {os.getloadavg()[0]:.0f}")
    if most is None:
        show_idle(world, operator, played)
    print(f"  MB resident: {memory:.0f} before, {peak:.0f} at most, {process.resident_mb():.0f} after")
    show(requests, starts)
    return Cost(
        starts_a_second=starts / seconds,
        cpu_ms=1000 * spent / starts,
        requests=len(requests) / starts,
        writes=sum(r.method in WRITES for r in requests) / starts,
        late_ms=lateness(requests, played.objects, simulation.ends),
        grown_mb=1000 * (peak - memory) / jobs,
    )


def show_idle(world: World, operator: Operator, played: Played) -> None:
    """What is asked for, and is left, when all is finished."""
    idle = len(operator.proxy.requests)
    time.sleep(IDLE_SECONDS)
    quiet = counted(operator, idle)
    left = len(world.items(played.children))
    print(f"  when finished: {len(quiet) / IDLE_SECONDS:.2f} requests a second, {left} children left")
    show(quiet, max(len(quiet), 1))


def show(requests: list[Any], starts: int) -> None:
    """Each kind of request, for one start, or as its share of all."""
    kinds = Counter(f"{r.method} {'/'.join(p for p in r.path.split('/')[-3:] if p.isalpha())}" for r in requests)
    for what, count in kinds.most_common(14):
        print(f"  {count / starts:6.2f} {what}")
    print("  refused:", [f"{r.method} {r.path} {r.code}" for r in requests if r.code in (401, 403, 422)][:5])


def started(world: World, code: Path, done: int) -> Operator:
    """Our operator at work; what its start takes where so many jobs are done is printed."""
    environment = {
        "FINETUNE_ENDED_SECONDS": str(ENDED_SECONDS),
        "FINETUNE_LEADER_ELECTION": "false",  # a machine that is busy with nodes and people loses leases; nor has the other one
        "PYTHONPATH": f"{code}:{code.parent / 'trainer_image'}:{ROOT}",
    }
    directory = Path(tempfile.mkdtemp(prefix="operator-scale-"))
    operator = Operator(world, directory, ("-m", "finetune_operator"), environment).start()
    wait_until("it works", lambda: any(r.path.endswith("/modelserves") for r in operator.proxy.requests), 120)
    assert operator.process is not None
    process = Process(operator.process.pid)
    spent = -1.0
    while process.cpu_seconds() - spent > CALM_SECONDS / 20:  # a twentieth of a core at most: the first passes are over
        spent = process.cpu_seconds()
        time.sleep(CALM_SECONDS)
    asked = counted(operator)
    writes = sum(r.method in WRITES for r in asked)
    print(f"started beside {done} finished jobs: {process.cpu_seconds():.1f} s of CPU, {process.resident_mb():.0f} MB resident")
    print(f"  {len(asked)} requests, {writes} writes")
    show(asked, max(done, 1))
    return operator


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--ends", type=int)
    parser.add_argument("--finished", type=int, default=0)
    parser.add_argument("--beside", action="store_true")
    parser.add_argument("--code", type=Path, default=ROOT / "operator")
    asked = parser.parse_args()
    with a_world() as world:
        world.namespace(SPACE)
        finished.restore(world, asked.finished, SPEC)
        operator = started(world, asked.code, asked.finished)
        try:
            cost = measure(world, operator, ours(), asked.jobs, "jobs", asked.ends)
        finally:
            (Path(tempfile.gettempdir()) / "operator-scale.log").write_text(operator.log)
            operator.close()
        print(*cost.lines(), sep="\n")
        if asked.beside:
            beside(world, asked.jobs, cost)


def beside(world: World, jobs: int, cost: Cost) -> None:
    """Kubeflow's figures, and ours over them."""
    operator = training_operator.started(world)
    try:
        other = measure(world, operator, training_operator.PLAYED, jobs, "pods")
    finally:
        operator.close()
    print("training-operator", *other.lines(), sep="\n")
    print(
        f"ours / its: starts a second {cost.starts_a_second / other.starts_a_second:.2f}, CPU {cost.cpu_ms / other.cpu_ms:.2f},"
        f" requests {cost.requests / other.requests:.2f}, writes {cost.writes / other.writes:.2f},"
        f" p99 {cost.late_ms[1] / other.late_ms[1]:.2f}, memory {cost.grown_mb / other.grown_mb:.2f}"
    )


if __name__ == "__main__":
    main()
