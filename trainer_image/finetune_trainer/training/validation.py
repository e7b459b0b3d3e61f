"""What the validation loss decides: which step was the best, and when to stop. Read from the log that checkpoints hold, so
that a resumed run decides as the unbroken one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LOSS = "eval_loss"


def validations(log: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """Step and loss of each validation in the Trainer's log, oldest first."""
    return [(int(entry["step"]), float(entry[LOSS])) for entry in log if LOSS in entry]


def best_step(log: Sequence[dict[str, Any]]) -> int | None:
    """The step with the lowest validation loss, the earliest of equals; None before the first validation."""
    found = validations(log)
    return min(found, key=lambda one: one[1])[0] if found else None


class StopEarly(TrainerCallback):
    """Ends training after `patience` validations in a row that did not beat the best."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self.stopped = False

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        best = best_step(state.log_history)
        since = [step for step, _ in validations(state.log_history) if best is not None and step > best]
        if len(since) >= self._patience and not self.stopped and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = True
            control.should_save = False  # an attempt that dies from here on must come to this decision again
            print(f"stopping after step {state.global_step}: validation was best after step {best}", flush=True)
        return control
