"""The training loop of each objective: contract/objectives says which module of this package has it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from datasets import Dataset

from finetune_trainer.contract.training import Training
from finetune_trainer.data.rendered import TRAIN, VALIDATION
from finetune_trainer.training.loop import Loop


class TrainedBy(Protocol):
    """What such a module offers. It imports TRL's trainer, which takes seconds."""

    read: Callable[[Path, str], Dataset | None]  # the rows of a split as its loop takes them

    def config(self, training: Training, shared: dict[str, Any], padded: bool) -> Any:
        """The configuration of its trainer; `shared` is what all objectives take. Not padded, rows share a line of tokens."""

    def make_loop(self, training: Training, reference: Any, **options: Any) -> Loop:
        """Its trainer. `reference` is the frozen model that the loss compares with, where there is one."""


def trained_by(training: Training) -> TrainedBy:
    return cast(TrainedBy, importlib.import_module(f"finetune_trainer.training.{training.learning.trained_by}"))


def make_loop(training: Training, folder: Path, reference: Any, **options: Any) -> Loop:
    """A loop over the rendered rows in `folder`; `options` are those of transformers' Trainer."""
    module = trained_by(training)
    rows = {"train_dataset": module.read(folder, TRAIN), "eval_dataset": module.read(folder, VALIDATION)}
    return module.make_loop(training, reference, **rows, **options)
