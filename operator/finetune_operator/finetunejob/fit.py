"""Whether training fits the memory of its device: prepare estimates it, before any pod holds a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_trainer.contract.devices import Devices
from finetune_trainer.contract.reasons import Reason
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import FitFacts

_GIB = 1024**3


@dataclass(frozen=True)
class Fits:
    """The condition Fits."""

    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str


def judge(fit: FitFacts, devices: Devices) -> Fits:
    """Verdict from prepare's estimate. Unknown where nobody said how much memory there is."""
    field = "spec.parallelism.gpu.memory" if devices.gpus else "spec.stages.train.resources.limits.memory"
    larger = "take a larger GPU" if devices.gpus else f"raise {field}"
    need = f"{fit.predicted_bytes / _GIB:.1f} GiB with micro batches of {fit.micro_batch_size}"
    if fit.measured_bytes is not None:
        need += f" (it came to {fit.measured_bytes / _GIB:.1f} GiB)"
    if fit.available_bytes is None:
        return Fits(
            "Unknown",
            OperatorReason.MemoryUnknown,
            f"training is estimated to need {need}; set {field} to have it checked",
        )
    have = f"{fit.available_bytes / _GIB:.1f} GiB"
    if fit.predicted_bytes > fit.available_bytes:
        return Fits(
            "False",
            StepReason.DoesNotFit,
            f"training is estimated to need {need}, but there are {have}; use spec.training.method QLoRA,"
            f" lower spec.training.maxLength, or {larger}",
        )
    return Fits("True", OperatorReason.EnoughMemory, f"training is estimated to need {need} of {have}")
