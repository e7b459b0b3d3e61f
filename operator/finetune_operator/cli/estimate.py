"""Which settings of training fit a GPU, before anything is applied: the estimate that prepare makes, for each method. Pure.

Rows are not known yet: unless a length is given, each is taken to be as long as spec.training.maxLength lets it be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from finetune_operator.finetunejob import fit as verdicts
from finetune_operator.meta import quantity_value
from finetune_trainer.contract import combinations
from finetune_trainer.contract.reports import FitFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Method
from finetune_trainer.memory.choice import DoesNotFit
from finetune_trainer.memory.estimate import GIB, frozen_bytes
from finetune_trainer.memory.fit import in_memory
from finetune_trainer.memory.shape import Shape

USUAL_GPUS = ("16Gi", "24Gi", "48Gi", "80Gi", "141Gi")  # T4; L4, A10G, RTX 4090; L40S; A100, H100; H200


@dataclass(frozen=True)
class Subject:
    """What is estimated: a run, the model that it trains, and a distillation's teacher."""

    run: RunConfig
    model: Shape
    teacher: Shape | None = None
    row_tokens: int | None = None

    @property
    def longest_row(self) -> int:
        return self.row_tokens or self.run.training.max_length


@dataclass(frozen=True)
class Answer:
    """One method on one kind of GPU; `problem` says why not, where it does not fit or does not go together."""

    gpu: str
    method: Method
    fit: FitFacts | None
    problem: str = ""


def answers(subject: Subject, gpus: Sequence[str]) -> Iterator[Answer]:
    """Each method on each GPU, with the other settings as the file has them."""
    for gpu in gpus:
        for method in Method:
            yield _answer(subject, gpu, method)


def _answer(subject: Subject, gpu: str, method: Method) -> Answer:
    devices = subject.run.devices.model_copy(update={"memory_bytes": int(quantity_value(gpu))})
    training = subject.run.training.model_copy(update={"method": method})
    if wrong := combinations.refusals(training, devices):
        return Answer(gpu, method, None, "; ".join(wrong))
    run = subject.run.model_copy(update={"devices": devices, "training": training})
    taught = 0 if subject.teacher is None else frozen_bytes(subject.teacher, training, on_gpu=devices.gpus > 0)
    try:
        found = in_memory(run, subject.model, subject.longest_row, taught)
    except DoesNotFit as error:
        return Answer(gpu, method, None, str(error))
    verdict = verdicts.judge(found, devices)
    return Answer(gpu, method, found, "" if verdict.status == "True" else verdict.message)


def table(subject: Subject, found: Sequence[Answer]) -> Table:
    """A row for each answer; the file's own method has a mark."""
    world, parameters = subject.run.devices.world_size, subject.model.parameters
    title = f"{parameters / 1e9:.2f} B parameters, rows of {subject.longest_row} tokens, devices: {world}"
    shown = Table("memory", "method", "fits", "micro-batch", "recompute", "strategy", "needs", "notes", title=title)
    for answer in found:
        mark = "*" if answer.method is subject.run.training.method else ""
        row = (answer.gpu, f"{answer.method.value}{mark}")
        if (fit := answer.fit) is None:
            shown.add_row(*row, "no", "", "", "", "", answer.problem)
            continue
        needs = f"{fit.predicted_bytes / GIB:.1f} GiB"
        strategy = fit.strategy.value if fit.strategy else ""
        fits = "no" if answer.problem else "yes"
        shown.add_row(*row, fits, str(fit.micro_batch_size), fit.gradient_checkpointing, strategy, needs, answer.problem)
    return shown
