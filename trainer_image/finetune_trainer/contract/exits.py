"""How a pod ended, as a number, and what the operator does about it: one table that both sides read."""

from __future__ import annotations

from enum import Enum, IntEnum


class Retry(Enum):
    """What follows from the end of an attempt."""

    FREE = "Free"  # the pod was taken away, and nothing is wrong with it
    COUNTED = "Counted"  # it may pass the next time: spec.retry.maxRetries times
    SMALLER = "Smaller"  # it may pass with a smaller micro-batch
    NEVER = "Never"  # the same inputs would fail the same way


class ExitCode(IntEnum):
    """A pod's exit status, and the retry that follows where nobody touched the pod from outside."""

    retry: Retry

    def __new__(cls, number: int, retry: Retry) -> ExitCode:
        member = int.__new__(cls, number)
        member._value_, member.retry = number, retry
        return member

    OK = 0, Retry.NEVER
    UNEXPECTED = 1, Retry.COUNTED
    BAD_CONFIG = 10, Retry.NEVER
    BAD_DATA = 11, Retry.NEVER
    SOURCE_NOT_FOUND = 12, Retry.NEVER
    SOURCE_DENIED = 13, Retry.NEVER
    SOURCE_UNAVAILABLE = 14, Retry.COUNTED
    STORE_UNAVAILABLE = 15, Retry.COUNTED
    OUT_OF_GPU_MEMORY = 20, Retry.SMALLER
    DOES_NOT_FIT = 21, Retry.NEVER
    NON_FINITE_LOSS = 22, Retry.NEVER
    HANG = 23, Retry.COUNTED
    VERIFICATION_FAILED = 24, Retry.NEVER
    LOST_RANK = 25, Retry.COUNTED
    WORLD_INCOMPLETE = 26, Retry.COUNTED
    PREEMPTED = 30, Retry.FREE  # SIGTERM: a checkpoint was saved
    OUT_OF_MEMORY = 137, Retry.COUNTED  # SIGKILL, as the kernel's OOM killer sends it
    TERMINATED = 143, Retry.FREE  # SIGTERM: it ended before anything could be saved


# How ranks end because another one failed, the most telling first; any other code is a cause.
CONSEQUENCES = (
    ExitCode.OUT_OF_MEMORY,
    ExitCode.LOST_RANK,
    ExitCode.WORLD_INCOMPLETE,
    ExitCode.PREEMPTED,
    ExitCode.TERMINATED,
)
