"""What ended attempts reported, written into the status once: states, facts, scores, artifacts, the last failure.

Running ─ Job complete, report read ─► Succeeded          prepare's report marks finished steps Reused
   │ └── Job failed or gone ─► Pending (another attempt) ─ budget used up, or hopeless ─► Failed
   └──── Job complete, report lost ─► Pending, and prepare with it: it reads the committed result from the store
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from finetune_operator.api.finetunejob import Retry as Budget
from finetune_operator.api.finetunejob_status import (
    ArtifactStatus,
    FineTuneJobStatus,
    LastFailure,
    ProgressStatus,
    StepState,
    StepStatus,
)
from finetune_operator.finetunejob import fit
from finetune_operator.finetunejob.failures import JOB_DELETED, RESULT_LOST, Failure, failure_of
from finetune_operator.finetunejob.observed import Attempt, State, World
from finetune_operator.finetunejob.retries import cost, reached_by, with_node
from finetune_operator.finetunejob.runs import Run
from finetune_operator.finetunejob.spending import taken
from finetune_operator.meta import stamp
from finetune_trainer.contract.exits import Retry
from finetune_trainer.contract.pipeline import ADAPTER, BASE, EVALUATE, MERGED, PREPARE, TRAIN, Step, fingerprints
from finetune_trainer.contract.reports import StepResult

MOST_ATTEMPTS = 100  # of a step, whatever took its pods away


def absorb(status: FineTuneJobStatus, run: Run, world: World, budget: Budget, now: datetime) -> FineTuneJobStatus:
    """The status after all that has ended was read into it. Reading the same world again changes nothing more."""
    for step in run.steps:
        status = _adopt(status, run, step, world)
        record = step_record(status, step.name)
        if record.state is StepState.RUNNING:
            status = _read(status, run, step, world.attempt(record.job), budget, now)
    return status


def _adopt(status: FineTuneJobStatus, run: Run, step: Step, world: World) -> FineTuneJobStatus:
    """An attempt of this run that the status does not know is ours all the same, whether it runs or has ended.

    Each attempt is named in the status before it is started; that status may have been lost since, written over, or told in
    words of a later release.
    """
    record = step_record(status, step.name)
    ours = [a for a in world.attempts if (a.run, a.step) == (run.id, step.name) and a.number >= record.attempt]
    unknown = [a for a in ours if a.number > record.attempt or (a.state is State.ACTIVE and not a.deleting)]
    if record.state is not StepState.PENDING or not unknown:
        return status
    newest = max(unknown, key=lambda a: a.number)
    changes = {"state": StepState.RUNNING, "attempt": newest.number, "job": newest.job, "finished_at": None}
    return with_step(status, step.name, **changes, job_uid=newest.uid)


def step_record(status: FineTuneJobStatus, name: str) -> StepStatus:
    return next(s for s in status.steps if s.name == name)


def with_step(status: FineTuneJobStatus, name: str, **changes: object) -> FineTuneJobStatus:
    """The status with one step's record changed."""
    steps = [s.model_copy(update=changes) if s.name == name else s for s in status.steps]
    return status.model_copy(update={"steps": steps})


def _read(
    status: FineTuneJobStatus, run: Run, step: Step, attempt: Attempt | None, budget: Budget, now: datetime
) -> FineTuneJobStatus:
    record = step_record(status, step.name)
    if attempt is not None and record.job_uid not in (None, attempt.uid):
        attempt = None  # a stranger under our Job's name
    if attempt is None:
        if record.job_uid is None:
            return status  # not seen yet: it is created again under the same name, which is harmless
        if _has_failed(status, step.name):  # its Job was stopped for that
            return with_step(status, step.name, state=StepState.PENDING)
        return _fail(status, step, JOB_DELETED, budget, stamp(now))
    said = attempt.pod.progress if attempt.pod else None
    status = with_step(
        status,
        step.name,
        job_uid=attempt.uid,
        gpu=(said and said.gpu) or record.gpu,
        started_at=record.started_at or attempt.started_at or stamp(now),
        running_pods=attempt.running_pods if run.pods(step) > 1 and attempt.state is State.ACTIVE else None,
    )
    status = taken(status, run, step, attempt)
    if attempt.state is State.ACTIVE:
        return status
    ended = attempt.ended_at(now)
    if attempt.state is State.FAILED:
        return _fail(status, step, failure_of(attempt, step), budget, ended)
    result = attempt.pod.termination.result if attempt.pod and attempt.pod.termination else None
    if result is None:
        return _lost(status, step, budget, ended)
    return _succeed(status, run, step, result, ended)


def _succeed(status: FineTuneJobStatus, run: Run, step: Step, result: StepResult, ended: str) -> FineTuneJobStatus:
    status = with_step(
        status,
        step.name,
        state=StepState.SUCCEEDED,
        fingerprint=result.fingerprint,
        finished_at=ended,
        resumed_from_step=result.train.resumed_from_step if result.train else None,
    )
    status = with_facts(status, run, result)
    return _after_prepare(status, run, result, ended) if step.name == PREPARE else status


def _after_prepare(status: FineTuneJobStatus, run: Run, result: StepResult, ended: str) -> FineTuneJobStatus:
    """Steps that prepare found done are Reused; the others are to do, whatever was thought before."""
    done = {r.step: r for r in result.done}
    wanted = fingerprints(run.config, result.model, result.dataset) if result.model and result.dataset else {}
    for step in run.steps:
        if step.name == PREPARE:
            continue
        record = step_record(status, step.name)
        if step.name in done:
            state = StepState.SUCCEEDED if record.state is StepState.SUCCEEDED else StepState.REUSED
            status = with_step(status, step.name, state=state, fingerprint=done[step.name].fingerprint)
            status = with_facts(status, run, done[step.name])
        else:
            status = with_step(status, step.name, state=StepState.PENDING, fingerprint=wanted.get(step.name))
    if result.fit is not None and (verdict := fit.judge(result.fit, run.config.devices)).status == "False":
        return _fail(status, run.steps[0], Failure(Retry.NEVER, verdict.reason, verdict.message), Budget(), ended)
    return status


def with_facts(status: FineTuneJobStatus, run: Run, result: StepResult) -> FineTuneJobStatus:
    """The status with what one step reported: facts, its artifact, its scores."""
    changes: dict[str, object] = {
        name: value for name in ("model", "dataset", "fit", "cleaned") if (value := getattr(result, name)) is not None
    }
    if result.step == PREPARE:
        changes["warnings"] = list(result.warnings or ())
    if (made := result.artifact) is not None:
        artifact = ArtifactStatus(
            name=made.name,
            format=made.format,
            quantization=made.quantization,
            uri=f"{run.config.store.uri}/{made.path}",
            digest=made.digest,
            bytes=made.bytes,
        )
        known = {a.name: a for a in status.artifacts}
        changes["artifacts"] = sorted((known | {artifact.name: artifact}).values(), key=lambda made: _place(run, made.name))
    if result.train is not None:
        progress = status.progress or ProgressStatus(step=result.step)
        changes["progress"] = progress.model_copy(update={"loss": rounded(result.train.loss)})
        changes["training"] = result.train
    if result.scores:
        new = {s.subject: s.answers for s in result.scores}
        kept = [s for s in status.scores if s.subject not in new]
        changes["artifacts"] = [_evaluated(a, run, new[a.name]) if a.name in new else a for a in status.artifacts]
        shown = [s.model_copy(update={"values": {m: rounded(v, 6) for m, v in s.values.items()}}) for s in result.scores]
        changes["scores"] = sorted([*kept, *shown], key=lambda scores: _place(run, scores.subject))
    if result.report is not None:
        changes["report"] = f"{run.config.store.uri}/{result.report}"
    if result.published:
        changes["published"] = _union(status.published, result.published)
    return status.model_copy(update=changes)


def _place(run: Run, name: str) -> int:
    """Where an artifact, or its scores, stands in the status: as in the spec, whichever was made first."""
    order = [BASE, ADAPTER, MERGED, *(artifact.name for artifact in run.config.artifacts)]
    return order.index(name) if name in order else len(order)


def _evaluated(artifact: ArtifactStatus, run: Run, answers: str | None) -> ArtifactStatus:
    uri = None if answers is None else f"{run.config.store.uri}/{EVALUATE}/{answers}"
    return artifact.model_copy(update={"evaluation": uri})


def rounded(value: float | None, digits: int = 4) -> float | None:
    """The number with as many significant digits as a column of `kubectl get` has room for. The store holds all."""
    return None if value is None else float(f"{value:.{digits}g}")


def _union(old: Iterable[str], new: Iterable[str]) -> list[str]:
    return list(dict.fromkeys((*old, *new)))


def _lost(status: FineTuneJobStatus, step: Step, budget: Budget, ended: str) -> FineTuneJobStatus:
    status = _fail(status, step, RESULT_LOST, budget, ended)
    if step_record(status, step.name).state is StepState.FAILED:
        return status
    return with_step(status, PREPARE, state=StepState.PENDING)


def _fail(status: FineTuneJobStatus, step: Step, failure: Failure, budget: Budget, ended: str) -> FineTuneJobStatus:
    record = step_record(status, step.name)
    reached = reached_by(status, step)
    retries = record.retries + cost(step, record, failure, reached)
    smaller = record.micro_batch_size
    if failure.retry is Retry.SMALLER:
        smaller = smaller_micro_batch(status, step, budget.on_out_of_memory)
    hopeless = failure.retry is Retry.NEVER or (failure.retry is Retry.SMALLER and smaller is None)
    final = hopeless or retries > budget.max_retries or record.attempt >= MOST_ATTEMPTS
    message = failure.message
    if record.attempt >= MOST_ATTEMPTS:
        message += f" (attempt {record.attempt}: no more are made)"
    elif final and failure.retry is Retry.COUNTED:
        message += f" (attempt {record.attempt}; {budget.max_retries} retries used up)"
    elif failure.retry is Retry.SMALLER and not final:
        message += f"; it goes on with micro-batches of {smaller}"
    state = StepState.FAILED if final else StepState.PENDING
    changes: dict[str, object] = {"state": state, "retries": min(retries, budget.max_retries), "finished_at": ended}
    if step.stage == TRAIN:
        changes["reached"] = max(reached, record.reached or 0)
    changes |= {"micro_batch_size": smaller or record.micro_batch_size, "failed_nodes": with_node(record, failure)}
    status = with_step(status, step.name, **changes)
    return _with_failure(status, record, replace(failure, message=message), ended)


def fail(status: FineTuneJobStatus, step: str, failure: Failure, now: datetime) -> FineTuneJobStatus:
    """The status with a step that no attempt will take up again."""
    record = step_record(status, step)
    status = with_step(status, step, state=StepState.FAILED, finished_at=stamp(now))
    return _with_failure(status, record, failure, stamp(now))


def _has_failed(status: FineTuneJobStatus, but: str) -> bool:
    """Whether another step than this one has failed for good, and the job with it."""
    return any(s.state is StepState.FAILED and s.name != but for s in status.steps)


def _with_failure(status: FineTuneJobStatus, record: StepStatus, failure: Failure, ended: str) -> FineTuneJobStatus:
    """The first that fails for good tells why the job did."""
    if _has_failed(status, record.name):
        return status
    last = LastFailure(
        step=record.name,
        attempt=record.attempt,
        node=failure.node,
        exit_code=failure.exit_code,
        reason=failure.reason,
        message=failure.message,
        time=ended,
    )
    return status.model_copy(update={"last_failure": last})


def smaller_micro_batch(status: FineTuneJobStatus, step: Step, on_out_of_memory: str) -> int | None:
    """The largest part of the micro-batch that is at most its half, so that the global batch stays what it is; of one row the
    same once more where layers keep more than they must, as they do in no attempt that is told a micro-batch."""
    fit, told = status.fit, step_record(status, step.name).micro_batch_size
    now = told or (fit.micro_batch_size if fit else 1)
    if step.stage != TRAIN or on_out_of_memory == "Fail":
        return None
    if now == 1 and told is None and fit is not None and fit.kept_layers:
        return 1
    return max((part for part in range(1, now // 2 + 1) if now % part == 0), default=None)
