"""Many processes that train one model: how a pod starts its own, how they meet, and what they must agree on.

    pod of node n:  python -m finetune_trainer train ── torchrun ──┬─► rank n·p      (one for each GPU; one where there is none)
                    (reads how its ranks ended,                    └─► rank n·p + 1 …
                     ends as the most telling one)                      all ranks meet at node 0: gloo on CPUs, NCCL on GPUs

Only rank 0 reports, commits and writes checkpoints. A rank that dies closes its connections, so that the others fail
within seconds; where its machine vanished without a word, the collectives' timeout ends them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from finetune_trainer import contract
from finetune_trainer.contract import CONSEQUENCES, Devices, ExitCode, Failure, StepResult, Termination
from finetune_trainer.failures import StepFailed, first_line

T = TypeVar("T")

JOIN_SECONDS = 1800  # an image of many GB is pulled on each node at its own pace
COLLECTIVE_SECONDS = 1800  # while rank 0 uploads a checkpoint, the others wait for it in their next collective
ENV_ENDS = "FINETUNE_RANK_ENDS"
BETWEEN_RANKS = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out", "tcpstore")


# ── In the pod's first process ────────────────────────────────────────────────────────────────────────────────────────


def is_launched_here(stage: str, devices: Devices) -> bool:
    """Whether this process has to start the ranks of its node, instead of doing the step itself."""
    return stage == "train" and devices.world_size > 1 and not is_rank()


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def launch(step: str, devices: Devices, folder: Path) -> StepResult | None:
    """Run the ranks of this node to their end. Returns what rank 0 reports, where it is one of them.

    The ranks leave in `folder` how they ended. Raises StepFailed as the most telling of them did.
    """
    process = subprocess.Popen(_torchrun(step, devices), env=_environment(devices) | {ENV_ENDS: str(folder)})
    previous = signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
    try:
        status = process.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
    ends = [_read_end(path) for path in sorted(folder.glob("rank-*"))]
    if not ends and status:
        raise _not_joined(devices, status)
    if [code for code, _ in ends] != [ExitCode.OK] * devices.ranks_per_node:
        raise _most_telling(ends, status)
    return next((end.result for _, end in ends if end.result is not None), None)


def _torchrun(step: str, devices: Devices) -> list[str]:
    program = [sys.executable, "-m", "torch.distributed.run"]
    host, _, port = _master().partition(":")
    options = {
        "nnodes": devices.nodes,
        "nproc-per-node": devices.ranks_per_node,
        "node-rank": os.environ.get(contract.ENV_NODE_RANK, "0"),
        "master-addr": host,
        "master-port": port,
        "max-restarts": 0,  # a lost rank ends the attempt: the operator starts the next one, on whatever nodes there are
        "rdzv-conf": f"timeout={JOIN_SECONDS}",
    }
    return [*program, *(f"--{name}={value}" for name, value in options.items()), "-m", "finetune_trainer", step]


def _master() -> str:
    return os.environ.get(contract.ENV_MASTER, "127.0.0.1:29500")


def _environment(devices: Devices) -> dict[str, str]:
    """torchrun gives its processes as long to save as the pod has; without a number it would set one thread for each."""
    from finetune_trainer.libraries import threads

    grace = os.environ.get(contract.ENV_GRACE_SECONDS, "30")
    each = str(max(1, threads() // devices.ranks_per_node))
    return {"OMP_NUM_THREADS": each, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": grace} | os.environ


def _read_end(path: Path) -> tuple[int, Termination]:
    """Exit status and report that a rank left; an empty file is all that a killed one leaves."""
    status, _, report = path.read_text().partition("\n")
    if not status:
        message = f"rank {path.name.rpartition('-')[2]} was killed by the system: raise spec.stages.train.resources"
        return int(ExitCode.OUT_OF_MEMORY), Termination(failure=Failure(reason="Killed", message=message))
    return int(status), Termination.model_validate_json(report)


def _most_telling(ends: list[tuple[int, Termination]], status: int) -> StepFailed:
    """One rank fails, and the others fail because of it: the first cause is what the job must hear."""
    failed = [(code, end.failure) for code, end in ends if code != ExitCode.OK and end.failure is not None]
    if failed:
        code, failure = min(failed, key=lambda f: CONSEQUENCES.index(f[0]) + 1 if f[0] in CONSEQUENCES else 0)
        known = ExitCode(code) if code in ExitCode.__members__.values() else ExitCode.PREEMPTED
        return StepFailed(known, failure.reason, failure.message)
    return StepFailed(ExitCode.UNEXPECTED, "LauncherFailed", f"torchrun ended with status {status}; see the pod's log")


def _not_joined(devices: Devices, status: int) -> StepFailed:
    if status == -signal.SIGTERM:
        return StepFailed(ExitCode.PREEMPTED, "Preempted", "the pod was asked to stop before all ranks had joined")
    return StepFailed(
        ExitCode.WORLD_INCOMPLETE,
        "WorldIncomplete",
        f"not all {devices.nodes} nodes joined within {JOIN_SECONDS} s: see whether all pods of the attempt were scheduled"
        f" and may reach {_master()}",
    )


# ── In each rank ──────────────────────────────────────────────────────────────────────────────────────────────────────


def note_start() -> None:
    """A rank that is killed later can't say so: the empty file says that it was there."""
    if is_rank():
        _end_file().touch()


def leave_report(report: str, status: int) -> None:
    """Write the termination message where the kubelet reads it; a rank leaves it to the process that started it."""
    if is_rank():
        _end_file().write_text(f"{status}\n{report}")
    else:
        Path(os.environ.get(contract.ENV_TERMINATION_LOG, contract.TERMINATION_LOG)).write_text(report)


def _end_file() -> Path:
    return Path(os.environ[ENV_ENDS]) / f"rank-{os.environ['RANK']}"


def rank() -> int:
    """This process among all; 0 where it is alone."""
    return int(os.environ.get("RANK", "0")) if is_rank() else 0


def is_first() -> bool:
    """Whether this process reports and commits."""
    return rank() == 0


def join(devices: Devices) -> None:
    """Meet the other ranks. Alone, nothing happens.

    Raises StepFailed WORLD_INCOMPLETE where there are fewer than were asked for: nothing trains on less in silence.
    """
    if devices.world_size == 1 and not is_rank():
        return
    import torch
    import torch.distributed as dist

    found = int(os.environ.get("WORLD_SIZE", "1"))
    if found != devices.world_size:
        raise StepFailed(
            ExitCode.WORLD_INCOMPLETE,
            "WorldIncomplete",
            f"{found} processes were started where spec.parallelism asks for {devices.world_size}: nothing was trained",
        )
    if devices.gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if devices.gpus else "gloo"
    with lost_ranks():
        dist.init_process_group(backend, timeout=timedelta(seconds=COLLECTIVE_SECONDS))
        agree(0)


def leave() -> None:
    """Part from the other ranks; alone, nothing happens."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def agree(value: int) -> int:
    """The largest of all ranks' values, so that each does the same: save now, stop now. Waits for no GPU."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return value
    shared = torch.tensor(value)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def gathered(value: Any) -> list[Any] | None:
    """Every rank's value in the order of the ranks, on rank 0; None on the others."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    values: list[Any] | None = [None] * dist.get_world_size() if is_first() else None
    dist.gather_object(value, values)
    return values


def of_first(make: Callable[[], T]) -> T:
    """What rank 0 makes, on all ranks."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return make()
    made = [make() if is_first() else None]
    dist.broadcast_object_list(made)
    return made[0]  # type: ignore[return-value]


@contextmanager
def first_on_node() -> Iterator[bool]:
    """The block runs on each node's first rank (True), then on the others, which find there what it fetched."""
    import torch.distributed as dist

    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if dist.is_initialized() and not first:
        dist.barrier()
    yield first
    if dist.is_initialized() and first:
        dist.barrier()


@contextmanager
def lost_ranks() -> Iterator[None]:
    """What the collectives raise when another rank is gone, as LOST_RANK. Alone, errors pass as they are."""
    try:
        yield
    except RuntimeError as error:
        import torch

        said = str(error).lower()
        if not is_rank() or isinstance(error, torch.OutOfMemoryError) or not any(word in said for word in BETWEEN_RANKS):
            raise
        raise StepFailed(
            ExitCode.LOST_RANK,
            "LostRank",
            f"another rank of this attempt is gone; training goes on from the last checkpoint ({first_line(error, 160)})",
        ) from error
