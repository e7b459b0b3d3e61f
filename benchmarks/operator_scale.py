"""What the operator costs: requests, writes and CPU time for each Job that it starts, memory for 1,000 FineTuneJobs, silence.

    PYTHONPATH=operator:trainer_image:. python benchmarks/operator_scale.py [JOBS] [OPERATOR]

A real API server, with its Job controller and scheduler; pods are simulated: they run for a second and report success.
OPERATOR is the folder `operator` of another checkout, to be measured beside this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
from tests.builders import make_result
from tests.integration.conftest import FINETUNE, ROOT, Operator, World, a_world
from tests.integration.fake_node import MANAGED
from tests.waiting import wait_until

from finetune_trainer.contract.reports import Termination
from finetune_trainer.contract.run import RunConfig

SPACE = "scale"
POD_SECONDS, ENDED_SECONDS, IDLE_SECONDS = 1.0, 5.0, 20.0
AT_ONCE = 20  # requests of the simulation
SPEC = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}, "parallelism": {"gpusPerNode": 0}}
WRITES = ("POST", "PUT", "PATCH", "DELETE")
MERGE = {"Content-Type": "application/merge-patch+json"}


class Simulation:
    """Creates the FineTuneJobs and plays the nodes: each pod runs for a while and ends well."""

    def __init__(self, world: World, jobs: int) -> None:
        self._world = world
        self._jobs = jobs
        self._root = f"https://{world.api.host}:{world.api.port}"
        self._runs: dict[str, RunConfig] = {}
        self._seen: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def _main(self) -> None:
        connector = aiohttp.TCPConnector(ssl=self._world.api.context, limit=AT_ONCE + 2)
        async with aiohttp.ClientSession(self._root, connector=connector, read_bufsize=2**21) as self._session:
            with contextlib.suppress(aiohttp.ClientError):  # the API server is gone: the measurement is over
                await asyncio.gather(self._nodes(), self._users())

    async def _users(self) -> None:
        gate = asyncio.Semaphore(AT_ONCE // 2)

        async def create(number: int) -> None:
            meta = {"name": f"job-{number}", "namespace": SPACE}
            body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": meta, "spec": SPEC}
            async with gate, self._session.post(f"{FINETUNE}/namespaces/{SPACE}/finetunejobs", json=body) as response:
                response.raise_for_status()

        await asyncio.gather(*(create(number) for number in range(self._jobs)))

    async def _nodes(self) -> None:
        url = f"/api/v1/namespaces/{SPACE}/pods?{MANAGED}&watch=true"
        while True:
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as response:
                async for line in response.content:
                    pod = json.loads(line)["object"]
                    if pod["metadata"].get("name") and pod["metadata"]["name"] not in self._seen:
                        self._seen.add(pod["metadata"]["name"])
                        task = asyncio.create_task(self._run(pod))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)

    async def _run(self, pod: dict[str, Any]) -> None:
        began = pod["metadata"]["creationTimestamp"]
        await self._patch(
            pod, {"phase": "Running", "startTime": began, **_container({"running": {"startedAt": began}}, ready=True)}
        )
        await asyncio.sleep(POD_SECONDS)
        result = make_result(await self._config(pod), pod["metadata"]["labels"]["finetune.dev/step"])
        message = Termination(result=result).model_dump_json(by_alias=True, exclude_none=True)
        ended = {
            "exitCode": 0,
            "message": message,
            "startedAt": began,
            "finishedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        await self._patch(pod, {"phase": "Succeeded", "startTime": began, **_container({"terminated": ended}, ready=False)})

    async def _patch(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        url = f"/api/v1/namespaces/{SPACE}/pods/{pod['metadata']['name']}/status"
        async with self._session.patch(url, data=json.dumps({"status": status}), headers=MERGE) as response:
            if response.status not in (200, 404):
                response.raise_for_status()

    async def _config(self, pod: dict[str, Any]) -> RunConfig:
        name = next(v["configMap"]["name"] for v in pod["spec"]["volumes"] if v["name"] == "run")
        if name not in self._runs:
            async with self._session.get(f"/api/v1/namespaces/{SPACE}/configmaps/{name}") as response:
                self._runs[name] = RunConfig.model_validate_json((await response.json())["data"]["run.json"])
        return self._runs[name]


def _container(state: dict[str, Any], *, ready: bool) -> dict[str, Any]:
    container = {"name": "step", "image": "none", "imageID": "", "ready": ready, "restartCount": 0, "state": state}
    return {"containerStatuses": [container]}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1000


def succeeded(world: World) -> int:
    found = world.items(f"{FINETUNE}/namespaces/{SPACE}/finetunejobs")
    return sum(any(c["type"] == "Succeeded" for c in j.get("status", {}).get("conditions", [])) for j in found)


def counted(operator: Operator, since: int = 0) -> list[Any]:
    """Requests but for the election's and the watches'."""
    return [r for r in operator.proxy.requests[since:] if "leases" not in r.path and "watch=true" not in r.query]


def measure(world: World, jobs: int, code: Path) -> None:
    world.namespace(SPACE)
    environment = {
        "FINETUNE_NAMESPACE": SPACE,
        "FINETUNE_ENDED_SECONDS": str(ENDED_SECONDS),
        "PYTHONPATH": f"{code}:{code.parent / 'trainer_image'}:{ROOT}",
    }
    operator = Operator(world, Path(tempfile.mkdtemp(prefix="operator-scale-")), ("-m", "finetune_operator"), environment)
    operator.start()
    try:
        wait_until("it leads", lambda: '"leading"' in operator.log, 120)
        time.sleep(8)
        assert operator.process is not None
        pid = operator.process.pid
        before, memory, since, begin = cpu_seconds(pid), resident_mb(pid), len(operator.proxy.requests), time.monotonic()
        Simulation(world, jobs).start()
        peak = memory
        while succeeded(world) < jobs:
            time.sleep(2)
            peak = max(peak, resident_mb(pid))
        seconds = time.monotonic() - begin
        time.sleep(ENDED_SECONDS + 5)
        spent, requests = cpu_seconds(pid) - before, counted(operator, since)
        stages = sum(r.method == "POST" and r.path.endswith("/jobs") and r.code == 201 for r in requests)
        idle = len(operator.proxy.requests)
        time.sleep(IDLE_SECONDS)
        left = len(world.items(f"/apis/batch/v1/namespaces/{SPACE}/jobs"))
        verbs: dict[str, int] = {}
        for r in requests:
            what = f"{r.method} {'/'.join(p for p in r.path.split('/')[-3:] if not any(c.isdigit() for c in p))}"
            verbs[what] = verbs.get(what, 0) + 1
        print(f"FineTuneJobs {jobs}, stage Jobs {stages}, {seconds:.0f} s, {stages / seconds:.1f} stage starts a second")
        writes = sum(r.method in WRITES for r in requests)
        print(f"a stage Job: {len(requests) / stages:.1f} requests, {writes / stages:.1f} writes")
        print(f"a stage Job: {1000 * spent / stages:.1f} ms of CPU")
        end, grown = resident_mb(pid), 1000 * (peak - memory) / jobs
        print(f"MB resident: {memory:.0f} before, {peak:.0f} at most, {end:.0f} after; {grown:.1f} a 1,000 jobs at most")
        print(f"when finished: {left} Jobs left, {len(counted(operator, idle)) / IDLE_SECONDS:.2f} requests a second")
        for what, count in sorted(verbs.items(), key=lambda item: -item[1])[:14]:
            print(f"  {count / stages:6.2f} {what}")
        print("refused:", [f"{r.method} {r.path} {r.code}" for r in requests if r.code in (401, 403, 422)][:5])
    finally:
        (Path(tempfile.gettempdir()) / "operator-scale.log").write_text(operator.log)
        operator.close()


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with a_world() as made:
        measure(made, number, Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "operator")
