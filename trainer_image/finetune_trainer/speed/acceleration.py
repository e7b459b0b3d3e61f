"""What makes a training step fast on a GPU, chosen by what is there: attention, fused kernels, the fused LoRA path.

Everything here changes speed and memory, never what is computed; tests/trainer/test_acceleration.py holds each part
against the plain one, and docs/training-speed.md has what each gains.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from finetune_trainer.model.compute import Compute


def attention(folder: Path, compute: Compute, *, packing: bool = False) -> str | None:
    """Name for transformers' `attn_implementation` by which rows of this model may share a line of tokens; None where they are
    padded, and transformers chooses. They share one wherever there are kernels for it, on GPUs from Ampere on and in 16 bits;
    elsewhere where `packing` asks for it.
    """
    from finetune_trainer.speed.attention import implementation

    kernels = compute.device == "cuda" and compute.dtype in (torch.bfloat16, torch.float16)
    kernels = kernels and torch.cuda.get_device_capability() >= (8, 0)
    return implementation(folder, on_gpu=kernels) if kernels or packing else None


def accelerate(network: Any, compute: Compute, *, selective: bool) -> None:
    """Put the fast parts into a loaded model, adapters included. On CPUs it stays as it is.

    `selective` says that products are kept for the backward pass as they come (activations.py).
    """
    if compute.device != "cuda":
        return
    from finetune_trainer.speed.fused_lora import fuse

    fused = fuse(network)
    _liger(network, swiglu=not fused, rope=not selective)  # Liger rotates queries in place, where a product had put them


def _liger(network: Any, *, swiglu: bool, rope: bool) -> None:
    """Liger's kernels where it knows the architecture. The loss head is TRL's own, the fused path has its own MLP."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    inner = network.get_base_model() if hasattr(network, "get_base_model") else network
    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(inner.config.model_type)
    if apply is None:
        return
    wanted = {"rope": rope, "rms_norm": True, "swiglu": swiglu, "cross_entropy": False}
    wanted["fused_linear_cross_entropy"] = False
    known = apply.__code__.co_varnames[: apply.__code__.co_argcount]
    apply(model=inner, **{name: on for name, on in wanted.items() if name in known})
