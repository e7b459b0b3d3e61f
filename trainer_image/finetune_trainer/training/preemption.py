"""SIGTERM: the pod is asked to go. What was trained is saved within the grace period, then the process ends."""

from __future__ import annotations

import os
import signal
import threading
from enum import Enum, auto
from typing import Any

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed

RESERVE_SECONDS = 2.0


class Activity(Enum):
    LOADING = auto()  # nothing to lose: leave at once
    TRAINING = auto()  # finish the micro-batch, save, leave
    COMMITTING = auto()  # the work is done: finish writing it down


class Preemption:
    """Remembers that SIGTERM came, and what to do about it at the moment that it came.

        LOADING ──► TRAINING ──► COMMITTING          `requested` is read between micro-batches while TRAINING
           │            │
           └ StepFailed └ saved, StepFailed

    A micro-batch or an upload may outlast the grace period. SIGKILL would then end the pod with the exit status of an
    out-of-memory kill, which counts against the job's retries: a timer ends the process as Preempted just before.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self.requested = False
        self.activity = Activity.LOADING
        self._previous: Any = signal.SIG_DFL
        self._timer: threading.Timer | None = None

    def install(self) -> None:
        """Take over SIGTERM. Only the main thread may; elsewhere (a library call in a test) nothing is installed."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)

    def restore(self) -> None:
        """Give SIGTERM the meaning back that it had, and stop the timer: what had to be written is written."""
        if self._timer is not None:
            self._timer.cancel()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._previous)

    def _on_signal(self, *_: Any) -> None:
        if self._timer is not None:
            return
        self.requested = True
        self._timer = threading.Timer(max(self._grace_seconds - RESERVE_SECONDS, 0.5), os._exit, [int(ExitCode.PREEMPTED)])
        self._timer.daemon = True
        self._timer.start()
        if self.activity is Activity.LOADING:
            raise preempted("before the first step: nothing to save")


def preempted(when: str) -> StepFailed:
    """The failure that says: not the job's fault, start another attempt."""
    message = f"the pod was asked to stop {when}; another attempt goes on from there"
    return StepFailed(StepReason.Preempted, message)
