"""Adapters that begin as a part of the weights (PiSSA, OLoRA), over a base that holds the rest while they are trained.

    W = (W - s B₀ A₀) + s B₀ A₀          trained: the second part          saved: ΔW = s (B A - B₀ A₀), of rank 2 r

What is saved is PEFT's conversion to a plain adapter, so it fits the base model as it is: for the merge, its proofs, and
whoever loads it. The beginning needs no keeping: a resumed run computes it anew from weights and seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_trainer.contract.adapters import SPLIT_INITS
from finetune_trainer.contract.training import Method, Training


def keep(network: Any, training: Training, folder: Path) -> Path | None:
    """Write the adapters as they begin, for `save_pretrained`'s path_initial_model_for_weight_conversion; None where they
    begin beside the weights.
    """
    if training.lora.init not in SPLIT_INITS or training.method is Method.FULL:
        return None
    network.save_pretrained(folder)
    return folder
