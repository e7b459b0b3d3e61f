"""The configuration of one run, whole: what the operator freezes in a ConfigMap and every pod of the run reads."""

from __future__ import annotations

from functools import cache
from typing import Literal

from pydantic import Field

from finetune_trainer.contract.artifacts import Artifact, Publish, StoreConfig
from finetune_trainer.contract.dataset import Dataset
from finetune_trainer.contract.devices import Devices
from finetune_trainer.contract.evaluation import Generation
from finetune_trainer.contract.fields import Strict, TrainedModel
from finetune_trainer.contract.tasks import Tasks
from finetune_trainer.contract.training import Training


class RunConfig(Strict):
    """All that the stages of one run need, resolved: frozen in a ConfigMap, so a later edit can't change a running pod."""

    namespace: str
    name: str
    model: TrainedModel
    dataset: Dataset
    training: Training
    devices: Devices
    merge_base: Literal["Dequantized", "Original"] = "Dequantized"
    artifacts: tuple[Artifact, ...] = ()
    generation: Generation = Field(default_factory=cache(Generation))
    tasks: Tasks | None = None
    publish: tuple[Publish, ...] = ()
    keep_runs: int | None = None  # of this job, whose results stay in the store; None: all
    store: StoreConfig
