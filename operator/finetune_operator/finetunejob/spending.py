"""The GPU time of a job: what its pods hold and have held, and what that costs. Pure.

pods run ─► status.holding ─ pods gone (ended, suspended, out of their queue, deleted) ─► status.gpuSeconds
What is counted once is never counted again: status.counted tells up to when.
"""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api.finetunejob_status import Cost, Counted, FineTuneJobStatus, Holding
from finetune_operator.finetunejob.observed import Attempt, State, World
from finetune_operator.finetunejob.runs import Run
from finetune_operator.meta import seconds_since, stamp
from finetune_operator.platforms import Profile
from finetune_trainer.contract.pipeline import Step

HOUR = 3600


def taken(status: FineTuneJobStatus, run: Run, step: Step, attempt: Attempt) -> FineTuneJobStatus:
    """The status with the GPUs that an attempt's pods hold, or held where it has ended before it was seen at work."""
    gpus = gpus_of(run, step)
    known = status.holding is not None and status.holding.job == attempt.job
    if known or not gpus or attempt.started_at is None or (attempt.state is State.ACTIVE and not attempt.running_pods):
        return status
    counted = status.counted.until if status.counted and status.counted.job == attempt.job else ""
    since = max(attempt.started_at, counted)
    return status.model_copy(update={"holding": Holding(job=attempt.job, gpus=gpus, since=since)})


def given_back(status: FineTuneJobStatus, world: World, now: datetime) -> FineTuneJobStatus:
    """The status with the time counted for which GPUs were held that no pod holds any more."""
    held = status.holding
    if held is None:
        return status
    attempt = world.attempt(held.job)
    if attempt is not None and attempt.running_pods:
        return status
    ended = stamp(now) if attempt is None else attempt.ended_at(now)
    seconds = status.gpu_seconds + round(_held_seconds(held, datetime.fromisoformat(ended)))
    counted = Counted(job=held.job, until=max(ended, held.since))
    return status.model_copy(update={"gpu_seconds": seconds, "counted": counted, "holding": None})


def spent(status: FineTuneJobStatus, now: datetime) -> float:
    """GPUs held times seconds, with those that are held now."""
    return status.gpu_seconds + (0 if status.holding is None else _held_seconds(status.holding, now))


def cost(status: FineTuneJobStatus, profile: Profile | None) -> Cost | None:
    """What the counted time costs under the job's profile; None where that has no price."""
    if profile is None or profile.gpu_hour_price is None:
        return None
    amount = round(status.gpu_seconds / HOUR * profile.gpu_hour_price, 2)
    return Cost(amount=amount, currency=profile.currency, gpu_hour_price=profile.gpu_hour_price)


def gpus_of(run: Run, step: Step) -> int:
    """GPUs that all pods of an attempt hold."""
    return run.gpus(step) * run.pods(step)


def _held_seconds(held: Holding, until: datetime) -> float:
    return max(0.0, seconds_since(held.since, until)) * held.gpus
