"""Whether the job fits the GPU's memory: prepare estimates it, before any pod holds a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_trainer.contract import FitFacts

_GIB = 1024**3


@dataclass(frozen=True)
class Fits:
    """The condition Fits."""

    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str


def judge(fit: FitFacts) -> Fits:
    """Verdict from prepare's estimate. Unknown where nobody said how large the GPU is."""
    need = f"{fit.predicted_bytes / _GIB:.1f} GiB with micro batches of {fit.micro_batch_size}"
    if fit.available_bytes is None:
        return Fits(
            "Unknown",
            "MemoryUnknown",
            f"training is estimated to need {need}; set spec.parallelism.gpu.memory to have it checked",
        )
    have = f"{fit.available_bytes / _GIB:.1f} GiB"
    if fit.predicted_bytes > fit.available_bytes:
        return Fits(
            "False",
            "DoesNotFit",
            f"training is estimated to need {need}, but there are {have}; use training.method QLoRA,"
            " lower training.maxLength, or take a larger GPU",
        )
    return Fits("True", "EnoughMemory", f"training is estimated to need {need} of {have}")
