"""The training loop of each objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_trainer.contract.objectives import OF_PAIRS, WITH_REFERENCE, Objective
from finetune_trainer.contract.training import Training
from finetune_trainer.data.rendered import TRAIN, VALIDATION
from finetune_trainer.training.loop import Loop


def make_loop(training: Training, folder: Path, reference: Any, **options: Any) -> Loop:
    """A loop over the rendered rows in `folder`. `reference` is the frozen model that the loss compares with, where there
    is one; `options` are those of transformers' Trainer.
    """
    objective = training.objective
    from finetune_trainer.data.tokenized import preferences, rows

    read = preferences if objective in OF_PAIRS else rows
    options |= {"train_dataset": read(folder, TRAIN), "eval_dataset": read(folder, VALIDATION)}
    if objective in WITH_REFERENCE:
        options["ref_model"] = reference
    if objective is Objective.DISTILLATION:
        options |= {"teacher": reference, "distillation": training.distillation}
    return _kind(objective)(**options)


def _kind(objective: Objective) -> type[Loop]:
    """TRL's trainers are imported where they are needed: each takes seconds."""
    if objective is Objective.SFT:
        from finetune_trainer.training.supervised import SupervisedLoop

        return SupervisedLoop
    if objective is Objective.DISTILLATION:
        from finetune_trainer.training.distillation import DistillationLoop

        return DistillationLoop
    from finetune_trainer.training import preference

    kinds: dict[Objective, type[Loop]] = {
        Objective.DPO: preference.DirectPreferenceLoop,
        Objective.KTO: preference.UnpairedLoop,
        Objective.ORPO: preference.OddsRatioLoop,
    }
    return kinds[objective]
