"""What layers keep until their backward pass, where gradient checkpointing has them compute it again.

Selective checkpointing keeps the answers of products and of attention, and repeats all else.

Norms, activation functions, rotations and dropout are most of what a layer saves and little of its time. Plain
checkpointing also repeats the products, half as much work again. TRL's own `selective` keeps attention alone.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

ATTENTION = (  # by the name of its operator; the last two are torch's varlen_attn and ours by cuDNN
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
    "finetune::packed_attention",
)
PRODUCTS = {  # which argument is the left factor, (tokens, in)
    "aten::mm": 0,
    "aten::addmm": 1,
    "bitsandbytes::gemm_4bit": 0,
}
M_MMAP_THRESHOLD = -3  # malloc.h
MAPPED_FROM = 1 << 17  # bytes of a block with a mapping of its own: what glibc begins with, and raises


def keep_products(network: Any, rank: int) -> None:
    """Whoever switches the network's gradient checkpointing on gets the selective one. `rank` is the adapters', 0 without.

    Products of adapters' B, over `rank` numbers each, are not kept: they take as much as their layer's and cost little.
    """
    enable = network.gradient_checkpointing_enable
    contexts = partial(create_selective_checkpoint_contexts, partial(_policy, rank))
    # On the model, as TrainingArguments, which trackers write out as JSON, take no function.
    network.gradient_checkpointing_enable = lambda *_, **__: enable({"use_reentrant": False, "context_fn": contexts})


def give_memory_back() -> None:
    """Have this process's C library give each freed tensor back to the system at once.

    glibc would hold on to what checkpointing frees on CPUs: the peak of ten layers fell from 2.0 to 1.25 GiB, their step
    took a fifth longer.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)


def _policy(rank: int, _: Any, operator: Any, *arguments: Any, **__: Any) -> CheckpointPolicy:
    name = operator.name().partition(".")[0]
    left = PRODUCTS.get(name)
    keep = name in ATTENTION or (left is not None and arguments[left].shape[-1] > rank)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
