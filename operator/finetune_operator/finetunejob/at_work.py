"""The steps at work: what each does or waits for, and which of that the job tells. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetune_operator.api.finetunejob_status import FineTuneJobStatus, StepState, StepStatus
from finetune_operator.decision import look_again
from finetune_operator.finetunejob.beside import next_beside
from finetune_operator.finetunejob.case import DOING, LOOK_AGAIN, PROGRESS_LOOK_AGAIN, Case, Outlook, Standing, Start
from finetune_operator.finetunejob.observed import Attempt
from finetune_operator.finetunejob.queued import is_left, why_queued
from finetune_operator.finetunejob.record import step_record
from finetune_operator.finetunejob.unstarted import no_pod, waiting_for
from finetune_trainer.contract.pipeline import Step
from finetune_trainer.contract.reasons.operator import OperatorReason


def at_work(case: Case) -> Outlook | None:
    """What must be done for one of the steps at work, else which may join them, else how they do."""
    running = (record for record in case.status.steps if record.state is StepState.RUNNING)
    outlooks = [_of_step(case, record, step) for record in running if (step := case.run.step(record.name)) is not None]
    if not outlooks:
        return None
    if (acting := next((o for o in outlooks if o.start or o.resume or o.stop), None)) is not None:
        return acting
    if (step := next_beside(case)) is not None:
        start = Start(step, step_record(case.status, step.name).attempt + 1)
        others = ", ".join(record.name for record in case.status.steps if record.state is StepState.RUNNING)
        doing = DOING[step.stage]
        message = f"{step.name} starts beside {others}"
        return Outlook(Standing.WORKING, doing, doing, message, start=start, requeue_after=LOOK_AGAIN)
    return _together(outlooks)


def _together(outlooks: Sequence[Outlook]) -> Outlook:
    """What waits gives the reason, before what runs."""
    told = next((o for o in outlooks if o.reason != o.stage), outlooks[0])
    looks = [o.requeue_after for o in outlooks if o.requeue_after is not None]
    return replace(told, message="; ".join(o.message for o in outlooks), requeue_after=min(looks, default=None))


def _of_step(case: Case, record: StepStatus, step: Step) -> Outlook:
    doing = DOING[step.stage]
    attempt = case.world.attempt(record.job)
    if attempt is None:
        start = Start(step, record.attempt)
        return Outlook(Standing.WORKING, doing, doing, f"{step.name} starts", start=start, requeue_after=LOOK_AGAIN)
    if attempt.suspended:
        return _waits_to_be_resumed(case, record, step, attempt)
    if (waiting := waiting_for(attempt, case.now)) is not None:
        message = f"{step.name} waits: {waiting.message or waiting.reason}"
        return Outlook(Standing.WORKING, doing, waiting.reason, message, requeue_after=PROGRESS_LOOK_AGAIN)
    if (unseen := no_pod(attempt, case.named, case.now)) is not None:
        message = f"{step.name} waits: {unseen.message}"
        return Outlook(Standing.WORKING, doing, unseen.reason, message, requeue_after=PROGRESS_LOOK_AGAIN)
    message = f"{step.name} runs, attempt {record.attempt}"
    if (asked := case.run.pods(step)) > 1:
        message += f", {attempt.running_pods} of {asked} pods run"
    return Outlook(Standing.WORKING, doing, doing, message, requeue_after=PROGRESS_LOOK_AGAIN)


def _waits_to_be_resumed(case: Case, record: StepStatus, step: Step, attempt: Attempt) -> Outlook:
    doing = DOING[step.stage]
    if ours_to_resume(attempt, case.status, record):
        return Outlook(Standing.WORKING, doing, doing, f"{step.name} goes on", resume=attempt)
    if attempt.queue is None:
        message = f"{step.name} waits: its Job {attempt.job} was suspended by somebody else, and goes on when they resume it"
        return Outlook(Standing.WORKING, doing, OperatorReason.JobSuspended, message)
    if is_left(attempt.queue, case.queues.get(step.name), case.named):
        message = f"{step.name} leaves the queue {attempt.queue}, as the spec names it no more"
        return Outlook(Standing.WORKING, doing, doing, message, stop=(attempt,), again=step.name, requeue_after=LOOK_AGAIN)
    waiting = why_queued(attempt.queue, case.job, case.named)
    again = None if waiting.reason == OperatorReason.Queued else look_again(case.job.status.conditions, case.now)
    return Outlook(Standing.WORKING, doing, waiting.reason, f"{step.name} waits{waiting.message}", requeue_after=again)


def ours_to_resume(attempt: Attempt, status: FineTuneJobStatus, record: StepStatus) -> bool:
    """Whether spec.suspend suspended the step's Job. Releases that did not say so on the Job told of it in the status."""
    return attempt.suspended_by_us or suspended_by_us(status, record)


def suspended_by_us(status: FineTuneJobStatus, record: StepStatus) -> bool:
    """What the status tells of that. Releases that kept no record of it told of it in Ready's reason."""
    if record.suspended is not None:
        return record.suspended
    return any(c.type == "Ready" and c.reason == OperatorReason.Suspended for c in status.conditions)
