"""A training that stands still: no step for many times as long as steps take. It ends, so that another attempt goes on.

    step ended ──► watched ── limit passed ──► stacks of all threads to the log, exit status HANG
        │             └─ step ended ──► its time is one more to take the median of
        └─ validation or a save is due ──► not watched until that is done

The first step, which loads and compiles, is never watched, and no limit is below FLOOR_SECONDS: storage may pause.
"""

from __future__ import annotations

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Failure, Termination
from finetune_trainer.ranks import distributed

FLOOR_SECONDS = 300.0
FEWEST_STEPS = 3  # whose median is taken

OnHang = Callable[[str], None]


class StepClock:
    """How long the step at work has taken, beside the median of those before it. Seconds of `clock`."""

    def __init__(self, medians: int, clock: Callable[[], float], floor: float) -> None:
        self._medians, self._clock, self._floor = medians, clock, floor
        self._times: list[float] = []
        self._since: float | None = None

    def begin(self) -> None:
        self._since = self._clock()

    def pause(self) -> None:
        self._since = None

    def end(self) -> None:
        """The step has ended; its time counts if its begin was seen."""
        if self._since is not None:
            self._times.append(self._clock() - self._since)
        self._since = None

    def overdue(self) -> str | None:
        """What to say if the step has taken too long, else None."""
        since = self._since
        if since is None or len(self._times) < FEWEST_STEPS:
            return None
        median, taken = statistics.median(self._times), self._clock() - since
        if taken <= max(self._medians * median, self._floor):
            return None
        return (
            f"no step for {taken:.0f} s, while steps take {median:.1f} s: the pod's log shows where each thread stood. Look"
            " there for storage or a network that does not answer; if steps may take so long, raise"
            " spec.retry.hangAfterMedianSteps"
        )


class Watchdog(TrainerCallback):
    """Watches the steps while it is entered; `on_hang` is called from a thread of its own. Add it after what saves."""

    def __init__(
        self,
        medians: int,
        on_hang: OnHang,
        clock: Callable[[], float] = time.monotonic,
        floor: float | None = None,
    ) -> None:
        self._floor = FLOOR_SECONDS if floor is None else floor
        self.steps = StepClock(medians, clock, self._floor)
        self._on_hang = on_hang
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.steps.end()
        if not (control.should_evaluate or control.should_save or control.should_training_stop):
            self.steps.begin()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not control.should_save:
            self.steps.begin()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size == 1:  # of many ranks, those that don't save wait for the first within their next step
            self.steps.begin()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.steps.pause()

    def _watch(self) -> None:
        while not self._done.wait(min(5.0, self._floor / 5)):
            said = self.steps.overdue()
            if said is not None:
                self._on_hang(said)
                return


def leave(said: str) -> None:
    """Dump the stacks of all threads, write the termination message and end the process: the main thread can't any more."""
    from finetune_trainer.termination import message

    print(f"train stopped: {said}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    failure = Failure(reason=StepReason.Hang, message=said)
    distributed.leave_report(message(Termination(failure=failure)), int(ExitCode.HANG))
    os._exit(int(ExitCode.HANG))


def watchdog(after: int) -> Watchdog:
    """The watchdog of this attempt: a step that takes `after` medians of a step's time hangs."""
    return Watchdog(after, leave)
