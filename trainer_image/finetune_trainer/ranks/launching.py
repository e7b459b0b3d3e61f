"""How a pod starts its ranks, as processes of their own, and how what became of them is told as one end.

pod n:  python -m finetune_trainer train ── torchrun or Ray ──┬─► rank n·p      (one for each GPU; one where there is none)
        (reads how its ranks ended,                           └─► rank n·p + 1 …
         ends as the most telling one)
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from finetune_trainer import environment
from finetune_trainer.contract.devices import Devices, Launcher
from finetune_trainer.contract.exits import CONSEQUENCES, ExitCode
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Failure, StepResult, Termination
from finetune_trainer.environment import ENV_ENDS, Pod
from finetune_trainer.failures import StepFailed
from finetune_trainer.ranks.distributed import is_rank

JOIN_SECONDS = 1800  # an image of many GB is pulled on each node at its own pace


def is_launched_here(stage: str, devices: Devices) -> bool:
    """Whether this process has to start the ranks of its node, instead of doing the step itself."""
    return stage == "train" and devices.world_size > 1 and not is_rank()


def launch(step: str, devices: Devices, pod: Pod, folder: Path) -> StepResult | None:
    """Run the ranks of this node to their end. Returns what rank 0 reports, where it is one of them.

    The ranks leave in `folder` how they ended. Raises StepFailed as the most telling of them did.
    """
    command = _ray(step, devices) if devices.launcher is Launcher.RAY else _torchrun(step, devices, pod)
    process = subprocess.Popen(command, env=_environment(devices, pod, folder))
    previous = signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
    try:
        status = process.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
    ends = [_read_end(path) for path in sorted(folder.glob("rank-*"))]
    if not ends and status:
        raise _not_joined(devices, pod.master, status)
    if [code for code, _ in ends] != [ExitCode.OK] * devices.ranks_per_node:
        raise _most_telling(ends, status)
    return next((end.result for _, end in ends if end.result is not None), None)


def _torchrun(step: str, devices: Devices, pod: Pod) -> list[str]:
    program = [sys.executable, "-m", "torch.distributed.run"]
    host, _, port = pod.master.partition(":")
    options = {
        "nnodes": devices.nodes,
        "nproc-per-node": devices.ranks_per_node,
        "node-rank": pod.node_rank,
        "master-addr": host,
        "master-port": port,
        "max-restarts": 0,  # a lost rank ends the attempt: the operator starts the next one, on whatever nodes there are
        "rdzv-conf": f"timeout={JOIN_SECONDS}",
    }
    return [*program, *(f"--{name}={value}" for name, value in options.items()), "-m", "finetune_trainer", step]


def _ray(step: str, devices: Devices) -> list[str]:
    return [sys.executable, "-m", "finetune_trainer.ranks.ray_node", step, devices.model_dump_json()]


def _environment(devices: Devices, pod: Pod, folder: Path) -> dict[str, str]:
    """torchrun gives its processes as long to save as the pod has; without a number it would set one thread for each."""
    from finetune_trainer.libraries import threads

    each = str(max(1, threads() // devices.ranks_per_node))
    limits = {"OMP_NUM_THREADS": each, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": f"{pod.grace_seconds:g}"}
    return environment.of_child({ENV_ENDS: str(folder)}, under=limits)


def _read_end(path: Path) -> tuple[int, Termination]:
    """Exit status and report that a rank left; an empty file is all that a killed one leaves."""
    status, _, report = path.read_text().partition("\n")
    if not status:
        message = f"rank {path.name.rpartition('-')[2]} was killed by the system: raise spec.stages.train.resources"
        return int(ExitCode.OUT_OF_MEMORY), Termination(failure=Failure(reason=StepReason.Killed, message=message))
    return int(status), Termination.model_validate_json(report)


def _most_telling(ends: list[tuple[int, Termination]], status: int) -> StepFailed:
    """One rank fails, and the others fail because of it: the first cause is what the job must hear."""
    failed = [(code, end.failure) for code, end in ends if code != ExitCode.OK and end.failure is not None]
    if failed:
        _, failure = min(failed, key=lambda f: CONSEQUENCES.index(f[0]) + 1 if f[0] in CONSEQUENCES else 0)
        return StepFailed(StepReason[failure.reason], failure.message)
    return StepFailed(StepReason.LauncherFailed, f"the launcher ended with status {status}; see the pod's log")


def _not_joined(devices: Devices, master: str, status: int) -> StepFailed:
    if status in (-signal.SIGTERM, ExitCode.TERMINATED):
        return StepFailed(StepReason.Preempted, "the pod was asked to stop before all ranks had joined")
    if devices.launcher is Launcher.RAY and status != ExitCode.WORLD_INCOMPLETE:
        return StepFailed(StepReason.LauncherFailed, f"Ray Train ended with status {status}; see the pod's log")
    return StepFailed(
        StepReason.WorldIncomplete,
        f"not all {devices.nodes} nodes joined within {JOIN_SECONDS} s: see whether all pods of the attempt were scheduled"
        f" and may reach {master}",
    )
