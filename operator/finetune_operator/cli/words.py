"""How the command line says things: progress, times, remarks, scores and verdicts. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError
from rich.table import Table

from finetune_operator.api.finetunejob_status import GateVerdict
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.reports import Progress, Remark, Scores


def reported(line: str) -> Progress | None:
    """The progress that a line of a step's output reports; None for any other line."""
    try:
        return Progress.model_validate_json(line) if line.startswith("{") else None
    except ValidationError:
        return None


def describe(progress: Progress) -> str:
    """One progress line for people: activity, step/total, loss, tokens/s, time left."""
    parts = [progress.activity] if progress.activity else []
    if progress.total:
        parts.append(f"{progress.step}/{progress.total}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:.0f} tok/s")
    if progress.eta_seconds is not None:
        parts.append(f"{duration(progress.eta_seconds)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people say them: 8s, 3m05s, 1h02m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def warning(remark: Remark) -> str:
    """A remark as the events of a cluster tell it."""
    return f"warning: {remark.reason}: {remark.message}"


def scores_table(scores: Sequence[Scores]) -> Table:
    """One column a model: there are more metrics than a terminal has room for side by side."""
    table = Table("score", *(s.subject for s in scores), title="Scores on the test rows", title_justify="left")
    of_tasks = dict.fromkeys(metric for s in scores for metric in s.values if "/" in metric)
    for metric in (*Metric, *of_tasks):
        if any(metric in s.values for s in scores):
            table.add_row(metric, *(f"{s.values[metric]:.4g}" if metric in s.values else "-" for s in scores))
    table.add_row("rows", *(str(s.samples) for s in scores))
    return table


def verdicts_table(verdicts: Sequence[GateVerdict]) -> Table:
    table = Table("gate", "verdict", "why", title="Gates", title_justify="left")
    for verdict in verdicts:
        word = "passed" if verdict.passed else "failed" if verdict.action == "Block" else "warned"
        table.add_row(verdict.name, word, verdict.message)
    return table
