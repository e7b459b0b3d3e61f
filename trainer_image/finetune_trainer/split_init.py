"""Adapters that begin as a part of the weights (PiSSA, OLoRA), over a base that holds the rest while they are trained.

    W = (W - s B₀ A₀) + s B₀ A₀          trained: the second part          saved: ΔW = s (B A - B₀ A₀), of rank 2 r

What is saved is PEFT's conversion to a plain adapter, so it fits the base model as it is: for the merge, its proofs, and
whoever loads it. The beginning needs no keeping: a resumed run computes it anew from weights and seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_trainer.adapter_fields import SPLIT_INITS
from finetune_trainer.contract import ExitCode, Method, Training
from finetune_trainer.failures import StepFailed
from finetune_trainer.objective_fields import WITH_REFERENCE


def check(training: Training, *, sharded: bool) -> None:
    """Raises StepFailed BadConfig for what can't begin so."""
    if training.lora.init not in SPLIT_INITS or training.method is Method.FULL:
        return
    field = f"training.lora.init {training.lora.init}"
    if training.method is Method.QLORA:
        raise _refused(f"{field} is for method LoRA: what is left of quantized weights, quantized anew, is another base")
    lora = training.lora
    if lora.dora or lora.modules_to_save or sharded or training.objective in WITH_REFERENCE:
        raise _refused(f"{field} goes with neither dora, modulesToSave, strategy FSDP nor objectives DPO and KTO")


def keep(network: Any, training: Training, folder: Path) -> Path | None:
    """Write the adapters as they begin, for `save_pretrained`'s path_initial_model_for_weight_conversion; None where they
    begin beside the weights.
    """
    if training.lora.init not in SPLIT_INITS or training.method is Method.FULL:
        return None
    network.save_pretrained(folder)
    return folder


def _refused(message: str) -> StepFailed:
    return StepFailed(ExitCode.BAD_CONFIG, "BadConfig", message)
