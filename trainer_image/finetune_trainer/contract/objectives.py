"""What is learned from a row: spec.training.objective and its settings, and what depends on it everywhere.

A new objective needs a value and its settings here, the module of training/ that trains it, and a line in docs/objectives.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from pydantic import Field

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.fields import Model, Strict


class Objective(StrEnum):
    SFT = "SFT"
    DPO = "DPO"
    ORPO = "ORPO"
    KTO = "KTO"
    DISTILLATION = "Distillation"


LEAST_OF_KTO = 2  # rows of a micro-batch: each answer is compared with one to another prompt of the same micro-batch
ANSWERS = tuple(f for f in DatasetFormat if f is not DatasetFormat.UNPAIRED_PREFERENCE)  # of these, nothing is to be avoided


@dataclass(frozen=True)
class Learning:
    """What an objective asks for, and what it costs."""

    trained_by: str  # module of training/, with `config` and `make_loop`
    rows: tuple[DatasetFormat, ...]  # the formats that it learns from
    rate: float  # customary peak where adapters are trained
    full_rate: float  # and where every weight is: those learn an order of magnitude slower
    of_pairs: bool = False  # a row gives two sequences, chosen and rejected, and is scored by which of them is likelier
    with_reference: bool = False  # it compares with the model as it was at the start
    with_teacher: bool = False  # a second model predicts the same answers
    least_rows: int = 1  # of a micro-batch


# Preferences only shift a model that answers already: they are learned slower still.
_PREFERENCE = Learning("preference", (DatasetFormat.PREFERENCE,), rate=1e-5, full_rate=1e-6, of_pairs=True)

OBJECTIVES: dict[Objective, Learning] = {
    Objective.SFT: Learning("supervised", ANSWERS, rate=2e-4, full_rate=2e-5),
    Objective.DPO: replace(_PREFERENCE, with_reference=True),
    Objective.ORPO: _PREFERENCE,
    Objective.KTO: replace(
        _PREFERENCE,
        rows=(DatasetFormat.PREFERENCE, DatasetFormat.UNPAIRED_PREFERENCE),
        with_reference=True,
        least_rows=LEAST_OF_KTO,
    ),
    Objective.DISTILLATION: Learning("distillation", ANSWERS, rate=2e-4, full_rate=2e-5, with_teacher=True),
}
OF_PAIRS = frozenset(name for name, learning in OBJECTIVES.items() if learning.of_pairs)
WITH_REFERENCE = frozenset(name for name, learning in OBJECTIVES.items() if learning.with_reference)


class Preference(Strict):
    beta: float = Field(0.1, gt=0, le=100)
    """DPO and KTO: how strongly the model is held to what it was at the start; a lower value lets it go further. ORPO: weight
    of the preference beside the loss on the chosen answer."""
    desirable_weight: float = Field(1, gt=0, le=1000)
    """KTO: weight of the loss on chosen, or desirable, answers."""
    undesirable_weight: float = Field(1, gt=0, le=1000)
    """KTO: weight of the loss on rejected, or undesirable, answers."""


class Distillation(Strict):
    teacher: Model
    """The model to learn from: larger than the base model, with the very same vocabulary."""
    temperature: float = Field(2, gt=0, le=100)
    """What both models' logits are divided by before they are compared: a higher one shows more of what the teacher holds
    for second best."""
    alpha: float = Field(0.9, gt=0, le=1)
    """Weight of the teacher's predictions; what is left to 1 is that of the rows' own answers."""
