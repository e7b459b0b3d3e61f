"""The FineTuneJob's policy: what to read for one job, and what follows from it. Pure: no client, no clock.

observe ─► current_run ─► absorb (what ended) ─► verdicts ─► make_outlook ─► actions + status + events
   └────── an edit that can't be run begins no run: what the last one did is kept as it is
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import FineTuneJobStatus, StepState, StepStatus
from finetune_operator.claims import CLAIM
from finetune_operator.decision import Action, Apply, Create, Decision, Delete, Observed, Reads, Ref, SuspendJob
from finetune_operator.finetunejob import admission, budget, gates, handover, image, objects, offered, placement
from finetune_operator.finetunejob.at_work import ours_to_resume
from finetune_operator.finetunejob.case import Case, Outlook, Start
from finetune_operator.finetunejob.deadlines import enforce, is_to_be_removed, seconds_left
from finetune_operator.finetunejob.ended import next_removal, overdue
from finetune_operator.finetunejob.observed import State, World, observe
from finetune_operator.finetunejob.plan import make_outlook, refused, suspended
from finetune_operator.finetunejob.record import absorb, step_record, with_step
from finetune_operator.finetunejob.references import Reference, references
from finetune_operator.finetunejob.run_config import run_config
from finetune_operator.finetunejob.runs import Run, begins_another, current_run
from finetune_operator.finetunejob.spending import given_back
from finetune_operator.finetunejob.status import events, next_status, rendered, unchanged_but_for
from finetune_operator.kueue import LOCAL_QUEUE
from finetune_operator.meta import stamp
from finetune_operator.names import artifacts_claim, job_labels, step_job
from finetune_operator.refusals import REFUSAL
from finetune_operator.settings import Settings
from finetune_trainer.contract import pod
from finetune_trainer.contract.pipeline import CLEAN, FINGERPRINT, Step
from finetune_trainer.contract.reasons.operator import OperatorReason

LEARNT = (LOCAL_QUEUE, CLAIM, "Job")  # kinds of what a pass may have to look at, by names that it learns as it goes
MOST_IN_USE = 5000  # fingerprints that a variable of a process has room for


def reads(job: FineTuneJob) -> Reads:
    """Children by label, and by name all that the spec refers to."""
    named = [r.ref for r in _references(job)]
    if _makes_claim(job):
        named.append(_made_claim(job))
    if (serve := handover.serve_name(job)) is not None:
        named.append(Ref("ModelServe", serve))
    named += [Ref(REFUSAL, step.job) for step in job.status.steps if step.state is StepState.RUNNING and step.job]
    return Reads(job_labels(job.metadata.name), ("Job", "Pod", "ConfigMap", "Service"), tuple(dict.fromkeys(named)), LEARNT)


def decide(job: FineTuneJob, observed: Observed, settings: Settings, now: datetime) -> Decision:
    """One pass over one job. The same inputs give the same decision."""
    world = observe(observed, job.metadata.uid, now)
    refusals = (*admission.problems(job.spec), *_not_offered(job, settings))
    if refusals and begins_another(job):
        return _kept(job, world, suspended(world) if job.spec.suspend else refused(refusals), now)
    run, before = current_run(job)
    limit = budget.Limit(job, run, settings.grace_seconds)
    status = given_back(absorb(before, run, world, job.spec.retry, now), world, now)
    status = enforce(job, budget.enforce(limit, status, now), world, now)
    refusals = (*refusals, *_unscored(job, status))
    verdicts = tuple(gates.verdicts(job.spec.evaluation.gates, status.scores, job.spec.training.objective))
    queues = placement.queues(offered.under_profile(job, settings), run.steps)
    case = Case(job, run, status, world, observed.named, _references(job), verdicts, refusals, queues, now)
    outlook = make_outlook(case)
    serve = observed.named.get(Ref("ModelServe", handover.serve_name(job) or ""))
    told = next_status(case, outlook, serve, settings.platform.profiles.get(job.spec.profile or ""))
    if outlook.start is not None:
        told = _started(told, case, outlook.start)
    if outlook.again is not None:
        told = with_step(told, outlook.again, state=StepState.PENDING)
    told = _with_suspensions(told, job.status, world, outlook)
    if is_to_be_removed(job, told, now):
        return Decision((Delete("FineTuneJob", job.metadata.name, job.metadata.uid),), rendered(told))
    looks = (
        outlook.requeue_after,
        seconds_left(job, told, world, now),
        budget.seconds_left(limit, told, now),
    )
    return Decision(
        actions=tuple(_actions(case, outlook, observed, settings)),
        status=rendered(told),
        events=events(job.status, told),
        requeue_after=min((seconds for seconds in looks if seconds is not None), default=None),
        tidy_after=next_removal(case, told, settings.ended_seconds),
        intent=outlook.start is not None and not _is_named(job.status, told, outlook.start),
    )


def _not_offered(job: FineTuneJob, settings: Settings) -> list[str]:
    """What the spec asks of this cluster's operator that it has not."""
    images = image.problems(job.spec, settings.under_profile(job.spec.profile))
    return [*images, *offered.problems(job.spec, settings)]


def _unscored(job: FineTuneJob, status: FineTuneJobStatus) -> Iterator[str]:
    """What the rows that prepare has seen can't be judged by."""
    if status.dataset is not None:
        yield from gates.unscored(job.spec.evaluation.gates, status.dataset.format)


def _is_named(before: FineTuneJobStatus, told: FineTuneJobStatus, start: Start) -> bool:
    """Whether the status that was read names the attempt that is started now."""
    known = next((s for s in before.steps if s.name == start.step.name), None)
    wanted = step_record(told, start.step.name)
    return known is not None and (known.state, known.job) == (wanted.state, wanted.job)


def _references(job: FineTuneJob) -> tuple[Reference, ...]:
    store = job.spec.storage.artifacts
    made = artifacts_claim(job.metadata.name) if store.uri is None else None
    return references(run_config(job), store.secret_ref, store.ca_secret_ref, made)


def _makes_claim(job: FineTuneJob) -> bool:
    """Whether the claim is ours to make and may be missing. Once a Job of the run was seen, it holds results or is in use."""
    begun = not begins_another(job) and any(s.job_uid for s in job.status.steps)
    return job.spec.storage.artifacts.uri is None and not begun


def _made_claim(job: FineTuneJob) -> Ref:
    return Ref("PersistentVolumeClaim", artifacts_claim(job.metadata.name))


def _kept(job: FineTuneJob, world: World, outlook: Outlook, now: datetime) -> Decision:
    """All that the last run came to, under the outlook of a spec that begins no run."""
    told = _with_suspensions(unchanged_but_for(job, outlook, now), job.status, world, outlook)
    return Decision(tuple(_stops(outlook)), rendered(told), events(job.status, told))


def _with_suspensions(
    status: FineTuneJobStatus, before: FineTuneJobStatus, world: World, outlook: Outlook
) -> FineTuneJobStatus:
    """Whose suspension each suspended Job is: others suspend Jobs too, and what they suspend is theirs to resume. What a
    suspended job takes is not counted.
    """
    by_us = {a.job for a in outlook.suspend}

    def of(step: StepStatus) -> bool | None:
        attempt = world.attempt(step.job)
        if attempt is None or (outlook.resume is not None and step.job == outlook.resume.job):
            return None
        if step.job in by_us:
            return True
        return ours_to_resume(attempt, before, step) if attempt.suspended else None

    steps = [s.model_copy(update={"suspended": of(s)}) for s in status.steps]
    since = None if outlook.reason == OperatorReason.Suspended else status.active_since
    return status.model_copy(update={"steps": steps, "active_since": since})


def _started(status: FineTuneJobStatus, case: Case, start: Start) -> FineTuneJobStatus:
    """The step's record once its Job is asked for: the uid is read when the Job is seen."""
    status = status.model_copy(update={"active_since": status.active_since or stamp(case.now)})
    name = step_job(case.job.metadata.name, start.step.name, case.run.id, start.attempt)
    return with_step(
        status,
        start.step.name,
        state=StepState.RUNNING,
        attempt=start.attempt,
        job=name,
        job_uid=None,
        finished_at=None,
    )


def _actions(case: Case, outlook: Outlook, observed: Observed, settings: Settings) -> Iterator[Action]:
    yield from _stops(outlook)
    for attempt in overdue(case, settings.ended_seconds):
        yield Delete("Job", attempt.job, attempt.uid, over=True)
    if outlook.start is not None:
        yield from _start(case, outlook.start, observed, settings)
    yield from _at_work(case, outlook, observed)
    if outlook.resume is not None:
        yield SuspendJob(outlook.resume.job, outlook.resume.uid, False)
    if outlook.hand_over is not None:
        yield Apply(outlook.hand_over, handover.manager(case.job))


def _stops(outlook: Outlook) -> Iterator[Action]:
    for attempt in outlook.stop:
        yield Delete("Job", attempt.job, attempt.uid)
    for attempt in outlook.suspend:
        yield SuspendJob(attempt.job, attempt.uid, True)


def _start(case: Case, start: Start, observed: Observed, settings: Settings) -> Iterator[Action]:
    """What the pod mounts comes first."""
    job, settings = offered.under_profile(case.job, settings), settings.under_profile(case.job.spec.profile)
    if _makes_claim(job) and observed.named.get(_made_claim(job)) is None:
        yield Create(objects.artifacts_volume_claim(job))
    yield from _needed(job, case.run, start.step, observed)
    told = {pod.ENV_IN_USE: in_use(case.run, observed)} if start.step.stage == CLEAN else {}
    yield Create(objects.attempt_job(job, case.run, start, case.status, settings, told))


def in_use(run: Run, observed: Observed) -> str:
    """Fingerprints of what our objects name in the run's store, as its pod reads them."""
    uris = observed.named_below(run.config.store.uri)
    found = {part for uri in uris for part in uri.split("/") if FINGERPRINT.fullmatch(part)}
    return " ".join(sorted(found)) if len(found) <= MOST_IN_USE else pod.ALL_IN_USE


def _at_work(case: Case, outlook: Outlook, observed: Observed) -> Iterator[Action]:
    """What the pods at work need goes on being there, whoever removes it."""
    for record in case.status.steps:
        attempt, step = case.world.attempt(record.job), case.run.step(record.name)
        over = attempt is None or attempt.state is not State.ACTIVE or attempt in (*outlook.stop, *outlook.suspend)
        if record.state is StepState.RUNNING and step is not None and not over:
            yield from _needed(case.job, case.run, step, observed)


def _needed(job: FineTuneJob, run: Run, step: Step, observed: Observed) -> Iterator[Action]:
    """The run's configuration, and the names by which several pods meet."""
    have = {c["metadata"]["name"] for c in observed.children.get("ConfigMap", ())}
    if run.config_map not in have:
        yield Create(objects.run_config_map(job, run))
    if run.pods(step) > 1:
        yield Apply(objects.ranks_service(job, run))
