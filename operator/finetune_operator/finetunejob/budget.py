"""A budget of GPU-hours: it ends a job before it is passed, with time for a checkpoint. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import DONE, FineTuneJobStatus, StepState
from finetune_operator.finetunejob.failures import Failure
from finetune_operator.finetunejob.record import fail
from finetune_operator.finetunejob.runs import Run
from finetune_operator.finetunejob.spending import HOUR, gpus_of, spent
from finetune_trainer.contract.exits import Retry
from finetune_trainer.contract.pipeline import Step
from finetune_trainer.contract.reasons.operator import OperatorReason


@dataclass(frozen=True)
class Limit:
    """What a job may take, and how long a pod of it goes on once it is told to stop."""

    job: FineTuneJob
    run: Run
    grace_seconds: int


def enforce(limit: Limit, status: FineTuneJobStatus, now: datetime) -> FineTuneJobStatus:
    """The status, with its current step failed where that would pass the budget."""
    step, budget = _current(limit.run, status), limit.job.spec.budget
    left = _seconds_to_stop(limit, status, now)
    if step is None or budget is None or left is None or left > 0:
        return status
    message = (
        f"{spent(status, now) / HOUR:.2f} of the {budget.gpu_hours:g} GPU-hours of spec.budget are used, and {step.name} would"
        " pass them; raise it, and the job goes on from its last checkpoint"
    )
    return fail(status, step.name, Failure(Retry.NEVER, OperatorReason.BudgetExhausted, message), now)


def seconds_left(limit: Limit, status: FineTuneJobStatus, now: datetime) -> float | None:
    """Seconds until the budget ends what is at work; None where nothing holds GPUs, or there is no budget."""
    left = None if status.holding is None else _seconds_to_stop(limit, status, now)
    return left if left is not None and left > 0 else None


def _seconds_to_stop(limit: Limit, status: FineTuneJobStatus, now: datetime) -> float | None:
    """Seconds from now until the current step must be told to stop; None where it holds no GPU or nothing limits it."""
    step, spec = _current(limit.run, status), limit.job.spec
    gpus = 0 if step is None else gpus_of(limit.run, step)
    if spec.budget is None or spec.suspend or not gpus:
        return None
    return (spec.budget.gpu_hours * HOUR - spent(status, now)) / gpus - limit.grace_seconds


def _current(run: Run, status: FineTuneJobStatus) -> Step | None:
    """The step at work that holds GPUs, of which there is one at most, else the next one; None where all is done or one has
    failed.
    """
    left = [s for s in status.steps if s.state not in DONE]
    if not left or any(s.state is StepState.FAILED for s in left):
        return None
    holding = (s for s in left if s.state is StepState.RUNNING and (step := run.step(s.name)) and gpus_of(run, step))
    return run.step(next(holding, left[0]).name)
