"""What `kubectl finetune status` and `watch` show of an object: its status, read once, as lines and tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune_operator.api.finetunejob_status import FineTuneJobStatus, ProgressStatus, StepState, StepStatus
from finetune_operator.api.modelserve import ModelServeStatus, Revision
from finetune_operator.cli.words import describe, duration, scores_table, verdicts_table, warning
from finetune_operator.finetunejob.spending import HOUR, spent
from finetune_operator.meta import Condition, Object
from finetune_trainer.contract.reports import Progress

COLOUR = {StepState.RUNNING: "yellow", StepState.SUCCEEDED: "green", StepState.REUSED: "green", StepState.FAILED: "red"}


def job_status(body: Object) -> FineTuneJobStatus:
    """The status of a FineTuneJob, whatever release wrote it."""
    return FineTuneJobStatus.model_validate(body.get("status") or {})


def serve_status(body: Object) -> ModelServeStatus:
    return ModelServeStatus.model_validate(body.get("status") or {})


def conditions(body: Object) -> dict[str, Condition]:
    """Those that hold for the spec as it is now, by type."""
    return {c.type: c for c in _told(body) if c.status == "True"}


def exit_status(body: Object) -> int | None:
    """0: it has what was asked for; 1: it has failed, or waits for a person; None: it goes on."""
    held = conditions(body)
    if "Ready" in held:
        return 0
    return 1 if "Stalled" in held else None


def headline(body: Object) -> str:
    """One line: which object, how it stands and why."""
    ready = next((c for c in _told(body) if c.type == "Ready"), None)
    name = f"{body['kind']} {body['metadata']['namespace']}/{body['metadata']['name']}"
    if ready is None:
        return f"{name}: the operator has not seen it as it is now; `kubectl finetune doctor` tells whether one runs"
    return f"{name}: {ready.reason}: {ready.message}"


def _told(body: Object) -> list[Condition]:
    """The conditions that the operator has told of the spec as it is now."""
    generation = body["metadata"].get("generation", 0)
    told = [Condition.model_validate(c) for c in (body.get("status") or {}).get("conditions") or []]
    return [c for c in told if c.observed_generation >= generation]


def shown(body: Object, now: datetime) -> RenderableType:
    """All that is worth seeing of an object."""
    parts = _of_job(job_status(body), now) if body["kind"] == "FineTuneJob" else _of_serve(serve_status(body))
    return Group(Text(headline(body)), *parts)


def listed(bodies: Iterable[Object]) -> Table:
    """A row for each job."""
    table = Table("job", "stage", "step", "done", "loss", "left", "ready", "reason")
    for body in bodies:
        status = job_status(body)
        progress = status.progress or ProgressStatus(step="")
        ready = next((c for c in status.conditions if c.type == "Ready"), None)
        loss = "" if progress.loss is None else f"{progress.loss:.4g}"
        left = "" if progress.eta_seconds is None else duration(progress.eta_seconds)
        row = (body["metadata"]["name"], status.stage or "", progress.step, f"{progress.percent} %", loss, left)
        table.add_row(*row, ready.status if ready else "Unknown", ready.reason if ready else "")
    return table


def said(progress: ProgressStatus) -> str:
    """What goes on now, as `finetune run` says it."""
    line = Progress(
        step_name=progress.step,
        activity=progress.activity,
        step=progress.current,
        total=progress.total,
        loss=progress.loss,
        tokens_per_second=progress.tokens_per_second,
        eta_seconds=progress.eta_seconds,
    )
    silent = "  (silent for more than two minutes)" if progress.stale else ""
    return f"{progress.step}: {describe(line)}{silent}"


def _of_job(status: FineTuneJobStatus, now: datetime) -> Iterator[RenderableType]:
    if status.steps:
        yield _steps(status.steps, now)
    if status.progress is not None and any(s.state is StepState.RUNNING for s in status.steps):
        yield Text(said(status.progress))
    for remark in status.warnings:
        yield Text(warning(remark), style="yellow")
    if status.last_failure is not None:
        failure = status.last_failure
        yield Text(f"last failure: {failure.step}, attempt {failure.attempt}, {failure.reason}: {failure.message}", style="red")
    if status.scores:
        yield scores_table(status.scores)
    if status.gates:
        yield verdicts_table(status.gates)
    for artifact in status.artifacts:
        yield Text(f"{artifact.name}: {artifact.uri} ({artifact.bytes / 1e6:.1f} MB, {artifact.digest[:19]})")
    if status.report is not None:
        yield Text(f"report: {status.report}")
    if (cleaned := status.cleaned) is not None:
        why = f"; {cleaned.message}" if cleaned.message else ""
        yield Text(f"removed of earlier runs: {cleaned.entries} entries ({cleaned.bytes / 1e6:.1f} MB){why}")
    for uri in status.published:
        yield Text(f"published: {uri}")
    if status.serving is not None:
        where = status.serving.url if status.serving.ready else "not ready"
        yield Text(f"served by ModelServe {status.serving.name}: {where}")
    if status.gpu_seconds or status.holding:
        yield Text(_spending(status, now))


def _spending(status: FineTuneJobStatus, now: datetime) -> str:
    price = "" if status.cost is None else f" at {status.cost.gpu_hour_price:g} {status.cost.currency} an hour"
    held = "" if status.holding is None else f", {status.holding.gpus} GPUs held now"
    return f"GPU-hours: {spent(status, now) / HOUR:.2f}{price}{held}"


def _steps(steps: Sequence[StepStatus], now: datetime) -> Table:
    table = Table("step", "state", "attempt", "time", "notes")
    for step in steps:
        state = Text(step.state.value, style=COLOUR.get(step.state, "dim"))
        table.add_row(step.name, state, str(step.attempt or ""), _took(step, now), "; ".join(_notes(step)))
    return table


def _took(step: StepStatus, now: datetime) -> str:
    if step.started_at is None:
        return ""
    end = datetime.fromisoformat(step.finished_at) if step.finished_at else now
    return duration((end - datetime.fromisoformat(step.started_at)).total_seconds())


def _notes(step: StepStatus) -> Iterator[str]:
    if step.resumed_from_step:
        yield f"went on from step {step.resumed_from_step}"
    if step.micro_batch_size is not None:
        yield f"micro-batch {step.micro_batch_size}: memory did not hold more"
    if step.running_pods is not None:
        yield f"{step.running_pods} pods run"
    if step.failed_nodes:
        yield "failed on " + ", ".join(step.failed_nodes)
    if step.gpu:
        yield step.gpu
    if step.suspended:
        yield "suspended"


def _of_serve(status: ModelServeStatus) -> Iterator[RenderableType]:
    table = Table("revision", "state", "model", "notes")
    for role, revision in (("live", status.live), ("candidate", status.candidate)):
        if revision is not None:
            table.add_row(revision.name, f"{role}, {revision.state.value}", revision.model_uri, "; ".join(_verdict(revision)))
    for former in status.history:
        if status.live is None or former.name != status.live.name:
            table.add_row(former.name, "before", former.model_uri, former.rolled_back or "")
    yield table
    if status.canary is not None:
        share, until = status.canary, status.canary.until
        yield Text(f"canary: {share.share:g} % by {share.by.value}, step {share.step}{f', until {until}' if until else ''}")
    if status.route is not None and not status.route.accepted:
        yield Text(f"route: {status.route.message}", style="yellow")
    if status.rollback_window is not None:
        window = status.rollback_window
        yield Text(f"rollback window: {window.revision} stays warm until {window.until}")
    yield Text(f"{status.url or 'no url yet'}, model {status.served_name or '?'}, {status.replicas} pods ready")


def _verdict(revision: Revision) -> Iterator[str]:
    if revision.reason:
        yield f"{revision.reason}: {revision.message}"
    if revision.test_rows is not None:
        yield f"{revision.test_rows.same_answers} of {revision.test_rows.asked} test rows answered as in the evaluation"
    if revision.strategy_message:
        yield revision.strategy_message
