"""What comes next for a job, decided from what is known: a chain of checks, read from top to bottom.

ended: succeeded, failed, gates ─ suspended ─ earlier run still there ─ refused ─ a step at work ─ next step ─ hand-over
The first check that has something to say decides: what is done stays done, then a person's word counts, then what may be
run at all. At most one Job is at work at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import DONE, FineTuneJobStatus, GateVerdict, StepState, StepStatus
from finetune_operator.decision import Ref, look_again, pause_after
from finetune_operator.finetunejob import gates, handover
from finetune_operator.finetunejob.handed import Stand
from finetune_operator.finetunejob.observed import Attempt, State, World
from finetune_operator.finetunejob.queued import is_left, why_queued
from finetune_operator.finetunejob.record import step_record
from finetune_operator.finetunejob.references import Reference, first_missing
from finetune_operator.finetunejob.runs import Run, written_spec
from finetune_operator.finetunejob.unstarted import no_pod, waiting_for
from finetune_operator.meta import Object, seconds_since
from finetune_trainer.contract.pipeline import AFTER_GATES, Step
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reasons.steps import StepReason

DOING = {
    "prepare": OperatorReason.Preparing,
    "train": OperatorReason.Training,
    "merge": OperatorReason.Merging,
    "quantize": OperatorReason.Quantizing,
    "evaluate": OperatorReason.Evaluating,
    "publish": OperatorReason.Publishing,
    "clean": OperatorReason.Cleaning,
}
LOOK_AGAIN = 5.0  # seconds; for what may change without an event that we watch
PROGRESS_LOOK_AGAIN = 30.0  # so that a silent pod's progress is shown as stale in time


class Standing(Enum):
    """How the job stands; each is one row of the status contract."""

    WORKING = "Working"  # goes on by itself
    STALLED = "Stalled"  # waits for a person, and goes on by itself then
    FAILED = "Failed"  # ended
    SUCCEEDED = "Succeeded"  # ended


@dataclass(frozen=True)
class Start:
    step: Step
    attempt: int


@dataclass(frozen=True)
class Outlook:
    standing: Standing
    stage: str
    reason: str
    message: str
    start: Start | None = None
    stop: tuple[Attempt, ...] = ()
    suspend: tuple[Attempt, ...] = ()
    resume: Attempt | None = None
    again: str | None = None  # a step that is started anew once its Job is stopped, though nothing failed
    hand_over: Object | None = None
    requeue_after: float | None = None


@dataclass(frozen=True)
class Case:
    """All that a decision rests on."""

    job: FineTuneJob
    run: Run
    status: FineTuneJobStatus  # with all that has ended read into it
    world: World
    named: Mapping[Ref, Object | None]
    wanted: tuple[Reference, ...]
    verdicts: tuple[GateVerdict, ...]
    refusals: tuple[str, ...]  # what of the spec can't be run, a sentence each
    queues: Mapping[str, str]  # by step: the LocalQueue that the spec, or its profile, names for it now
    now: datetime


Check = Callable[[Case], Outlook | None]


def make_outlook(case: Case) -> Outlook:
    """What the first check with something to say decides; the last always has."""
    return next(outlook for check in CHECKS if (outlook := check(case)) is not None)


def _finished(case: Case) -> Outlook | None:
    """Success is final while the spec asks for the same, whatever becomes of the children, the chart or suspend."""
    same = case.status.succeeded_spec == written_spec(case.job)
    for condition in case.status.conditions:
        ended = condition.type == "Succeeded" and condition.status == "True"
        if ended and (same or condition.observed_generation == case.job.metadata.generation):
            return Outlook(Standing.SUCCEEDED, "Succeeded", condition.reason, condition.message)
    return None


def _suspended(case: Case) -> Outlook | None:
    """No pods, those of an earlier run included."""
    return suspended(case.world) if case.job.spec.suspend else None


def suspended(world: World) -> Outlook:
    """What spec.suspend asks for, whatever else the spec says."""
    active = [a for a in world.attempts if a.state is State.ACTIVE and not a.deleting]
    queued = tuple(a for a in active if a.queue)  # Kueue would resume its Jobs: they are taken out of the queue
    ours = tuple(a for a in active if not a.queue and not a.suspended)
    message = "spec.suspend is true; set it to false to go on"
    return Outlook(Standing.WORKING, OperatorReason.Suspended, OperatorReason.Suspended, message, stop=queued, suspend=ours)


def _refused(case: Case) -> Outlook | None:
    return refused(case.refusals) if case.refusals else None


def refused(refusals: Sequence[str]) -> Outlook:
    """A spec that can't be run. A step at work goes on, as nothing is wrong with it; no other is started."""
    return Outlook(Standing.STALLED, "Waiting", StepReason.InvalidSpec, "; ".join(refusals))


def _earlier_run(case: Case) -> Outlook | None:
    """Jobs of a run that an edit ended make room first; the training pod saves a checkpoint as it goes."""
    earlier = tuple(a for a in case.world.attempts if a.run != case.run.id)
    if not earlier:
        return None
    message = "the spec was edited; Jobs of the earlier run are being removed"
    to_stop = tuple(a for a in earlier if not a.deleting)
    return Outlook(
        Standing.WORKING, OperatorReason.Stopping, OperatorReason.Stopping, message, stop=to_stop, requeue_after=LOOK_AGAIN
    )


def _failed(case: Case) -> Outlook | None:
    failure = case.status.last_failure
    if failure is None or not any(s.state is StepState.FAILED for s in case.status.steps):
        return None
    again = "once that is mended, edit the job or set its annotation finetune.dev/retry to a new value"
    at_work = tuple(a for a in case.world.attempts if a.state is State.ACTIVE and not a.deleting)
    message = f"{failure.step}: {failure.message}; {again}"
    return Outlook(Standing.FAILED, "Failed", failure.reason, message, stop=at_work)


def _at_work(case: Case) -> Outlook | None:
    record = next((s for s in case.status.steps if s.state is StepState.RUNNING), None)
    step = case.run.step(record.name) if record else None
    if record is None or step is None:
        return None
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


def _gates(case: Case) -> Outlook | None:
    """Nothing is published or served from a model that did not pass."""
    if any(step_record(case.status, s.name).state not in DONE for s in case.run.steps if s.stage not in AFTER_GATES):
        return None
    if not (refused := gates.blocking(case.verdicts)):
        return None
    numbers = "; ".join(f"{v.name}: {v.message}" for v in refused)
    remedy = "nothing was published or served; change the training or the gate"
    return Outlook(Standing.FAILED, "Failed", StepReason.GateFailed, f"{numbers}; {remedy}")


def _next_step(case: Case) -> Outlook | None:
    step = next((s for s in case.run.steps if step_record(case.status, s.name).state not in DONE), None)
    if step is None:
        return None
    record, doing = step_record(case.status, step.name), DOING[step.stage]
    if missing := first_missing(case.wanted, case.named):
        again = look_again(case.job.status.conditions, case.now)
        return Outlook(Standing.STALLED, "Waiting", missing.reason, missing.message, requeue_after=again)
    if case.world.live_pods:
        names = ", ".join(p.name for p in case.world.live_pods)
        message = f"{step.name} starts when the pod before it has ended: {names}"
        return Outlook(Standing.WORKING, OperatorReason.Stopping, OperatorReason.Stopping, message, requeue_after=LOOK_AGAIN)
    failure = case.status.last_failure
    if failure is not None and failure.step == step.name and (pause := _pause_left(record, case.now)) > 0:
        at = (case.now + timedelta(seconds=pause)).strftime("%H:%M:%SZ")  # a time of day stays the same in each pass
        message = f"{step.name} is tried again at {at}: {failure.message}"
        return Outlook(Standing.WORKING, doing, failure.reason, message, requeue_after=pause)
    message, start = f"{step.name} starts", Start(step, record.attempt + 1)
    left = tuple(a for a in case.world.attempts if a.left_behind and not a.deleting)  # their Jobs would start pods again
    return Outlook(Standing.WORKING, doing, doing, message, start=start, stop=left, requeue_after=LOOK_AGAIN)


def _pause_left(record: StepStatus, now: datetime) -> float:
    """Seconds until the next attempt. The first loss of a pod costs none."""
    if record.finished_at is None or record.attempt == 0 or (record.retries == 0 and record.attempt == 1):
        return 0.0
    return pause_after(record.attempt) - seconds_since(record.finished_at, now)


def _hand_over(case: Case) -> Outlook | None:
    """The job waits until the ModelServe is Ready with its artifact for the first time; after that it has ended."""
    wanted = handover.wanted_serve(case.job, case.status)
    if wanted is None:
        return None
    found = handover.judge(case.job, case.status, wanted, case.named.get(Ref("ModelServe", wanted["metadata"]["name"])))
    if found.stand in (Stand.READY, Stand.SUPERSEDED):
        return None
    refused = found.stand is Stand.REFUSED
    return Outlook(
        Standing.STALLED if refused else Standing.WORKING,
        "Serving",
        OperatorReason.ServingRefused if refused else OperatorReason.Serving,
        found.message,
        hand_over=found.apply,
        requeue_after=look_again(case.job.status.conditions, case.now),
    )


def _succeeded(case: Case) -> Outlook:
    warned = [v.name for v in case.verdicts if not v.passed]
    passed = sum(v.passed for v in case.verdicts)
    judged = f"{passed} of {len(case.verdicts)} gates passed" if case.verdicts else "no test rows, no gate was judged"
    message = judged + (f"; only warned: {', '.join(warned)}" if warned else "")
    return Outlook(Standing.SUCCEEDED, "Succeeded", OperatorReason.Succeeded, message)


CHECKS: tuple[Check, ...] = (
    _finished,
    _failed,
    _gates,
    _suspended,
    _earlier_run,
    _refused,
    _at_work,
    _next_step,
    _hand_over,
    _succeeded,
)
