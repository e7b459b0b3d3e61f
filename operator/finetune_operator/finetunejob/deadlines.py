"""How long a job may take: until its pods start, in all, and until it is removed after its end. Pure."""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import DONE, FineTuneJobStatus, StepState
from finetune_operator.finetunejob.failures import Failure
from finetune_operator.finetunejob.observed import Attempt, World
from finetune_operator.finetunejob.record import fail
from finetune_operator.meta import seconds_since
from finetune_trainer.contract.exits import Retry
from finetune_trainer.contract.reasons.operator import OperatorReason


def enforce(job: FineTuneJob, status: FineTuneJobStatus, world: World, now: datetime) -> FineTuneJobStatus:
    """The status, with a step failed where a deadline has passed: no attempt would make up for that."""
    left = [s for s in status.steps if s.state not in DONE]
    if not left or job.spec.suspend or any(s.state is StepState.FAILED for s in left):
        return status
    for step in (s for s in left if s.state is StepState.RUNNING):
        if (failure := _pending(job, world.attempt(step.job), now)) is not None:
            return fail(status, step.name, failure, now)
    failure = _active(job, status, now)
    return status if failure is None else fail(status, left[0].name, failure, now)


def seconds_left(job: FineTuneJob, status: FineTuneJobStatus, world: World, now: datetime) -> float | None:
    """Seconds until the next deadline, or until the job is removed; None where there is none."""
    waiting = [a for a in world.attempts if a.pending and a.admitted_at]
    ends = [
        *((job.spec.pending_deadline_seconds, attempt.admitted_at) for attempt in waiting),
        (job.spec.active_deadline_seconds, status.active_since),
        (job.spec.ttl_seconds_after_finished, _finished_at(status)),
    ]
    left = [limit - seconds_since(start, now) for limit, start in ends if limit is not None and start is not None]
    return min((seconds for seconds in left if seconds > 0), default=None)


def is_to_be_removed(job: FineTuneJob, status: FineTuneJobStatus, now: datetime) -> bool:
    """Whether the job has been at its end for spec.ttlSecondsAfterFinished."""
    ttl, ended = job.spec.ttl_seconds_after_finished, _finished_at(status)
    return ttl is not None and ended is not None and seconds_since(ended, now) >= ttl


def _pending(job: FineTuneJob, attempt: Attempt | None, now: datetime) -> Failure | None:
    limit = job.spec.pending_deadline_seconds
    if limit is None or attempt is None or not attempt.pending or attempt.admitted_at is None:
        return None
    if seconds_since(attempt.admitted_at, now) < limit:
        return None
    waiting = attempt.pod.waiting if attempt.pod else None
    why = f": {waiting.reason}: {waiting.message}" if waiting else ""
    return Failure(
        Retry.NEVER,
        OperatorReason.PendingDeadlineExceeded,
        f"no pod started within spec.pendingDeadlineSeconds, {limit} s{why}",
    )


def _active(job: FineTuneJob, status: FineTuneJobStatus, now: datetime) -> Failure | None:
    limit = job.spec.active_deadline_seconds
    if limit is None or status.active_since is None or seconds_since(status.active_since, now) < limit:
        return None
    return Failure(
        Retry.NEVER,
        OperatorReason.DeadlineExceeded,
        f"the job has taken longer than spec.activeDeadlineSeconds, {limit} s; raise it",
    )


def _finished_at(status: FineTuneJobStatus) -> str | None:
    ended = (c.last_transition_time for c in status.conditions if c.type in ("Succeeded", "Failed") and c.status == "True")
    return next(ended, None)
