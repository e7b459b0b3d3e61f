"""Many processes that train one model: how they meet, and what they must agree on. launching.py starts them.

All ranks meet at node 0: gloo on CPUs, NCCL on GPUs. Only rank 0 reports, commits and writes checkpoints. A rank that dies
closes its connections, so that the others fail within seconds; where its machine vanished without a word, the
collectives' timeout ends them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from finetune_trainer import environment
from finetune_trainer.contract.devices import Devices
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed, first_line

T = TypeVar("T")

COLLECTIVE_SECONDS = 1800  # while rank 0 uploads a checkpoint, the others wait for it in their next collective
BETWEEN_RANKS = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out", "tcpstore")


def is_rank() -> bool:
    """Whether a launcher started this process as one of several."""
    return environment.place() is not None


def note_start() -> None:
    """A rank that is killed later can't say so: the empty file says that it was there."""
    if place := environment.place():
        place.end_file.touch()


def leave_report(report: str, status: int) -> None:
    """Write the termination message where the kubelet reads it; a rank leaves it to the process that started it."""
    if place := environment.place():
        place.end_file.write_text(f"{status}\n{report}")
    else:
        environment.read().termination_log.write_text(report)


def rank() -> int:
    """This process among all; 0 where it is alone."""
    place = environment.place()
    return 0 if place is None else place.rank


def is_first() -> bool:
    """Whether this process reports and commits."""
    return rank() == 0


def is_first_on_node() -> bool:
    """Whether this process fetches and uploads for the others on its node."""
    place = environment.place()
    return place is None or place.local_rank == 0


def join(devices: Devices) -> None:
    """Meet the other ranks. Alone, nothing happens.

    Raises StepFailed WORLD_INCOMPLETE where there are fewer than were asked for: nothing trains on less in silence.
    """
    place = environment.place()
    if devices.world_size == 1 and place is None:
        if devices.gpus:  # where more are to be seen, the Trainer would spread over all of them
            environment.offer({"CUDA_VISIBLE_DEVICES": "0"})
        return
    import torch
    import torch.distributed as dist

    found = 1 if place is None else place.world_size
    if place is None or found != devices.world_size:
        raise StepFailed(
            StepReason.WorldIncomplete,
            f"{found} processes were started where spec.parallelism asks for {devices.world_size}: nothing was trained",
        )
    if devices.gpus:
        torch.cuda.set_device(place.local_rank)
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

    first = is_first_on_node()
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
            StepReason.LostRank,
            f"another rank of this attempt is gone; training goes on from the last checkpoint ({first_line(error, 160)})",
        ) from error
