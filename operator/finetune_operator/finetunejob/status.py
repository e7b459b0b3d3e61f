"""The status of a FineTuneJob, from what was decided. The only place that knows condition types.

standing    Ready   Reconciling   Stalled   Succeeded   Failed      kstatus
WORKING     False   True          -         -           -           InProgress
STALLED     False   -             True      -           -           Failed
FAILED      False   -             True      -           True        Failed
SUCCEEDED   True    -             -         True        -           Current
A condition that does not hold is absent, not False; Ready and Fits, which are asked for by name, are always told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import FineTuneJobStatus, ProgressStatus, ServingStatus, StepState, StepStatus
from finetune_operator.conditions import LONGEST_MESSAGE, Told, conditions
from finetune_operator.decision import Event
from finetune_operator.finetunejob import adapter_handover, fit, handover
from finetune_operator.finetunejob.case import Case, Outlook, Standing
from finetune_operator.finetunejob.handed import fingerprint
from finetune_operator.finetunejob.record import rounded, step_record
from finetune_operator.finetunejob.run_config import resolved
from finetune_operator.finetunejob.runs import written_spec
from finetune_operator.finetunejob.spending import cost
from finetune_operator.finetunejob.unused import unused
from finetune_operator.meta import Object, seconds_since, stamp
from finetune_operator.platforms import Profile
from finetune_trainer.contract.pipeline import TRAIN
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reasons.remarks import RemarkReason
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import FitFacts, Progress

STALE_SECONDS = 120
ENDINGS = ("Succeeded", "Stalled")  # conditions that a job has once it has ended


def next_status(case: Case, outlook: Outlook, serve: Object | None, profile: Profile | None = None) -> FineTuneJobStatus:
    """The whole status. `serve` is the ModelServe as it is now, `profile` the one that the spec names."""
    case = replace(case, status=case.status.model_copy(update={"fit": _fit(case)}))
    status, job = case.status, case.job
    smaller = step_record(status, TRAIN).micro_batch_size
    return status.model_copy(
        update={
            "observed_generation": job.metadata.generation,
            "conditions": conditions(_told_conditions(case, outlook), job.status.conditions, job.metadata.generation, case.now),
            "stage": outlook.stage,
            "resolved": resolved(case.run.config, status.fit, smaller, handover.serving_artifact(job.spec)),
            "warnings": [*unused(job.spec), *(w for w in status.warnings if w.reason != RemarkReason.FieldUnused)],
            "progress": _progress(case, outlook),
            "cost": cost(status, profile),
            "gates": list(case.verdicts),
            "serving": _serving(case, outlook, serve),
            "succeeded_spec": written_spec(job) if outlook.standing is Standing.SUCCEEDED else status.succeeded_spec,
        }
    )


def unchanged_but_for(job: FineTuneJob, outlook: Outlook, now: datetime) -> FineTuneJobStatus:
    """The status as it was, with the outlook of a spec that begins no run."""
    generation, before = job.metadata.generation, job.status.conditions
    fits = [Told("Fits", c.status, c.reason, c.message) for c in before if c.type == "Fits"]
    told = conditions([*_standing(outlook), *fits], before, generation, now)
    return job.status.model_copy(update={"observed_generation": generation, "conditions": told, "stage": outlook.stage})


def rendered(status: FineTuneJobStatus) -> dict[str, Any]:
    """The status as the API server takes it."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _standing(outlook: Outlook) -> Iterator[Told]:
    standing, why = outlook.standing, (outlook.reason, outlook.message)
    yield Told("Ready", "True" if standing is Standing.SUCCEEDED else "False", *why)
    if standing is Standing.WORKING:
        yield Told("Reconciling", "True", *why)
    if standing in (Standing.STALLED, Standing.FAILED):
        yield Told("Stalled", "True", *why)
    if standing is Standing.SUCCEEDED:
        yield Told("Succeeded", "True", *why)
    if standing is Standing.FAILED:
        yield Told("Failed", "True", *why)


def _told_conditions(case: Case, outlook: Outlook) -> Iterator[Told]:
    yield from _standing(outlook)
    if case.status.fit is not None:
        fits = fit.judge(case.status.fit, case.run.config.devices)
        yield Told("Fits", fits.status, fits.reason, fits.message)
    elif outlook.standing is Standing.FAILED and outlook.reason == StepReason.DoesNotFit:
        yield Told("Fits", "False", outlook.reason, outlook.message)


def _fit(case: Case) -> FitFacts | None:
    """The estimate, and the most memory that the training pod has told of, which it does with each reading."""
    found, record = case.status.fit, step_record(case.status, TRAIN)
    attempt = case.world.attempt(record.job) if record.state is StepState.RUNNING else None
    said = attempt.pod.progress if attempt and attempt.pod else None
    if found is None or said is None or said.memory_bytes is None:
        return found
    return found.model_copy(update={"measured_bytes": max(said.memory_bytes, found.measured_bytes or 0)})


def _progress(case: Case, outlook: Outlook) -> ProgressStatus | None:
    """What the pod at work said last. The loss stays when training has ended: it is the column people look at."""
    record, last = _who_tells(case), case.status.progress
    if outlook.standing is Standing.SUCCEEDED:
        return last and last.model_copy(update={"percent": 100, "eta_seconds": None, "stale": False, "activity": ""})
    if record is None:
        return last and last.model_copy(update={"eta_seconds": None})
    attempt = case.world.attempt(record.job)
    said = attempt.pod.progress if attempt and attempt.pod else None
    if said is not None:
        return _told(record.name, said, last, case.now)
    if last is not None and last.step == record.name:
        return last.model_copy(update={"stale": _is_stale(last.updated_at, case.now)})
    return ProgressStatus(step=record.name, loss=last.loss if last else None)


def _who_tells(case: Case) -> StepStatus | None:
    """The first step at work that has said something, else the first: one tells of the job at a time."""
    at_work = [s for s in case.status.steps if s.state is StepState.RUNNING]
    attempts = {s.name: case.world.attempt(s.job) for s in at_work}
    told = (s for s in at_work if (a := attempts[s.name]) is not None and a.pod is not None and a.pod.progress is not None)
    return next(told, next(iter(at_work), None))


def _told(step: str, said: Progress, last: ProgressStatus | None, now: datetime) -> ProgressStatus:
    at = stamp(datetime.fromtimestamp(said.time, UTC)) if said.time else stamp(now)
    return ProgressStatus(
        step=step,
        activity=said.activity,
        percent=min(100, 100 * said.step // said.total) if said.total > 0 else 0,
        current=said.step,
        total=said.total,
        loss=rounded(said.loss) if said.loss is not None else last and last.loss,
        learning_rate=rounded(said.learning_rate),
        tokens_per_second=rounded(said.tokens_per_second),
        eta_seconds=None if said.eta_seconds is None else round(said.eta_seconds),
        updated_at=at,
        stale=_is_stale(at, now),
    )


def _is_stale(updated_at: str | None, now: datetime) -> bool:
    return updated_at is not None and seconds_since(updated_at, now) > STALE_SECONDS


def _serving(case: Case, outlook: Outlook, serve: Object | None) -> ServingStatus | None:
    name, last = handover.serve_name(case.job), case.status.serving
    if name is None:
        return None
    if case.job.spec.serving is not None and case.job.spec.serving.adapter_of is not None:
        return adapter_handover.stands(name, last, handover.wanted_serve(case.job, case.status), serve)
    digest = last.digest if last and last.name == name else None
    served = ((serve or {}).get("spec") or {}).get("model", {}).get("digest")
    if outlook.hand_over is not None:
        digest = outlook.hand_over["spec"]["model"]["digest"]
    elif any(served == a.digest for a in case.status.artifacts):  # perhaps handed over by a job of this name before
        digest = served
    wanted, handed = handover.wanted_serve(case.job, case.status), last.handed_over if last and last.name == name else None
    if serve is None:
        return ServingStatus(name=name, digest=digest)
    if wanted is not None and handover.is_as_wanted(case.job, wanted, serve):
        handed = fingerprint(wanted)
    told = serve.get("status") or {}
    is_ours = served == digest
    is_seen = told.get("observedGeneration") == serve["metadata"].get("generation")
    is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in told.get("conditions") or [])
    ready = is_ours and is_seen and is_ready
    return ServingStatus(name=name, digest=digest, handed_over=handed, ready=ready, url=told.get("url"))


def events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> tuple[Event, ...]:
    """What is worth an event, from two statuses: each new warning, change of a step and failure, and how the job ended."""
    warned = (Event(w.reason, w.message[:LONGEST_MESSAGE], warning=True) for w in after.warnings if w not in before.warnings)
    return (*warned, *_step_events(before, after), *_ending_events(before, after))


def _step_events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Event]:
    """One for each change. A step that starts when another has succeeded is one change, and so is the last step's end."""
    known = {s.name: (s.state, s.attempt) for s in before.steps} if before.run == after.run else {}
    changed = [step for step in after.steps if known.get(step.name) != (step.state, step.attempt)]
    for step in changed:
        if step.state is StepState.REUSED:
            yield Event(OperatorReason.StepReused, f"{step.name} is done already; its output is reused")
    succeeded = " and ".join(step.name for step in changed if step.state is StepState.SUCCEEDED)
    started = [step for step in changed if step.state is StepState.RUNNING]
    for step in started:
        since = f" as {succeeded} has succeeded" if succeeded else ""
        yield Event(OperatorReason.StepStarted, f"{step.name} started{since}, attempt {step.attempt}, Job {step.job}")
    if succeeded and not started and not _has_ended(after):
        yield Event(OperatorReason.StepSucceeded, f"{succeeded} succeeded")
    failure = after.last_failure
    if failure is not None and failure != before.last_failure:
        yield Event(failure.reason, f"{failure.step}, attempt {failure.attempt}: {failure.message}", warning=True)


def _has_ended(status: FineTuneJobStatus) -> bool:
    return any(c.type in ENDINGS for c in status.conditions)


def _ending_events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Event]:
    old = {c.type: c for c in before.conditions}
    for condition in after.conditions:
        was = old.get(condition.type)
        if condition.type not in ENDINGS or (was and was.reason == condition.reason):
            continue
        failed_step = after.last_failure is not None and after.last_failure.reason == condition.reason
        if not failed_step:  # that event was posted with the failure
            yield Event(condition.reason, condition.message[:LONGEST_MESSAGE], warning=condition.type == "Stalled")
