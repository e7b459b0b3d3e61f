"""What is learned from a row: spec.training.objective and its settings, and what depends on it everywhere."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from finetune_trainer.contract.fields import Model, Strict


class Objective(StrEnum):
    SFT = "SFT"
    DPO = "DPO"
    ORPO = "ORPO"
    KTO = "KTO"
    DISTILLATION = "Distillation"


OF_PAIRS = frozenset({Objective.DPO, Objective.ORPO, Objective.KTO})  # a row gives two sequences: chosen and rejected
LEAST_OF_KTO = 2  # rows of a micro-batch: each answer is compared with one to another prompt of the same micro-batch
WITH_REFERENCE = frozenset({Objective.DPO, Objective.KTO})  # these compare with the model as it was at the start


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


def learning_rate(objective: Objective, *, full: bool) -> float:
    """The customary peak where none is asked for: every weight learns an order of magnitude slower than adapters, and
    preferences, which only shift a model that answers already, slower still.
    """
    if objective in OF_PAIRS:
        return 1e-6 if full else 1e-5
    return 2e-5 if full else 2e-4
