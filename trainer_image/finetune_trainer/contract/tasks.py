"""spec.evaluation.tasks: benchmarks by lm-evaluation-harness, and where their files lie."""

from __future__ import annotations

from pydantic import Field

from finetune_trainer.contract import places
from finetune_trainer.contract.fields import Strict
from finetune_trainer.contract.metrics import WORD
from finetune_trainer.contract.places import Use


class Task(Strict):
    name: str = Field(min_length=1, max_length=100, pattern=f"^{WORD}$")
    """Name of the task, as a YAML file at taskFiles.uri gives it. Its scores are called <task>/<metric>."""
    limit: int | None = Field(None, ge=1, le=1000000)
    """At most this many of the task's rows, the first ones. Unset: all."""
    num_fewshot: int | None = Field(None, ge=0, le=100)
    """Solved rows before each question. Unset: as many as the task's file says, else none."""


class TaskFiles(Strict):
    uri: str = Field(
        min_length=1,
        max_length=1024,
        pattern=places.pattern(Use.TASKS),
        description="Folder with lm-eval's YAML files of the tasks and, beside them, the rows that they name:"
        f" {places.forms(Use.TASKS)} (with the credentials of dataset.secretRef). No hub is asked.",
    )


class Tasks(Strict):
    """What a run's pods get to know of the tasks."""

    named: tuple[Task, ...]
    files: TaskFiles
    judged: tuple[str, ...] = ()  # scores that gates name: prepare tells which of them there will not be
