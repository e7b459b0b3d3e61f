"""What comes next for a job, decided from what is known: a chain of checks, read from top to bottom.

ended: succeeded, failed, gates ─ suspended ─ earlier run still there ─ refused ─ a step at work ─ next step ─ hand-over
The first check that has something to say decides: what is done stays done, then a person's word counts, then what may be
run at all. Where steps can't share what they mount, at most one Job is at work at any time (beside.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from finetune_operator.api.finetunejob_status import DONE, StepState
from finetune_operator.decision import NOT_FOUND, Ref, look_again, may_yet_come
from finetune_operator.finetunejob import gates, handover
from finetune_operator.finetunejob.at_work import at_work
from finetune_operator.finetunejob.beside import pause_left
from finetune_operator.finetunejob.case import DOING, LOOK_AGAIN, Case, Outlook, Standing, Start
from finetune_operator.finetunejob.handed import Stand
from finetune_operator.finetunejob.observed import State, World
from finetune_operator.finetunejob.record import step_record
from finetune_operator.finetunejob.references import first_missing
from finetune_operator.finetunejob.runs import written_spec
from finetune_trainer.contract.pipeline import AFTER_GATES
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reasons.steps import StepReason

Check = Callable[[Case], Outlook | None]


def make_outlook(case: Case) -> Outlook:
    """What the first check with something to say decides; the last always has."""
    return next(outlook for check in CHECKS if (outlook := check(case)) is not None)


def _finished(case: Case) -> Outlook | None:
    """Success is final while the spec asks for the same, whatever becomes of the children, the chart or suspend."""
    for condition in case.status.conditions:
        ended = condition.type == "Succeeded" and condition.status == "True"
        same = condition.observed_generation == case.job.metadata.generation
        if ended and (same or case.status.succeeded_spec == written_spec(case.job)):
            return Outlook(Standing.SUCCEEDED, "Succeeded", condition.reason, condition.message)
    return None


def _suspended(case: Case) -> Outlook | None:
    """No pods, those of an earlier run included."""
    return suspended(case.world) if case.job.spec.suspend and not _runs_unseen(case) else None


def _runs_unseen(case: Case) -> bool:
    """Whether there is a Job that the status names and no watch has told of yet: it is taken for ours before it is stopped."""
    named = (s.job for s in case.status.steps if s.state is StepState.RUNNING and s.job and case.world.attempt(s.job) is None)
    found = (case.named.get(Ref("Job", name)) for name in named)
    return any(job is not None and not job["metadata"].get("deletionTimestamp") for job in found)


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
        known = case.job.status.conditions
        comes = missing.reason in NOT_FOUND.values() and may_yet_come(known, case.now)
        standing = Standing.WORKING if comes else Standing.STALLED
        return Outlook(standing, "Waiting", missing.reason, missing.message, requeue_after=look_again(known, case.now))
    if case.world.live_pods:
        names = ", ".join(p.name for p in case.world.live_pods)
        message = f"{step.name} starts when the pod before it has ended: {names}"
        return Outlook(Standing.WORKING, OperatorReason.Stopping, OperatorReason.Stopping, message, requeue_after=LOOK_AGAIN)
    failure = case.status.last_failure
    if failure is not None and failure.step == step.name and (pause := pause_left(record, case.now)) > 0:
        at = (case.now + timedelta(seconds=pause)).strftime("%H:%M:%SZ")  # a time of day stays the same in each pass
        message = f"{step.name} is tried again at {at}: {failure.message}"
        return Outlook(Standing.WORKING, doing, failure.reason, message, requeue_after=pause)
    message, start = f"{step.name} starts", Start(step, record.attempt + 1)
    left = tuple(a for a in case.world.attempts if a.left_behind and not a.deleting)  # their Jobs would start pods again
    return Outlook(Standing.WORKING, doing, doing, message, start=start, stop=left, requeue_after=LOOK_AGAIN)


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
    at_work,
    _next_step,
    _hand_over,
    _succeeded,
)
