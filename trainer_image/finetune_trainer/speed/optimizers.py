"""Optimizers without work that they need not do: bitsandbytes' waits, and a pass over all gradients to clip them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

TINY = 1e-6  # what torch's clipping adds to the norm


def wait_for_pages_only(optimizer: Any) -> None:
    """Let `step` of an optimizer whose states lie on the device queue its work and go on.

    bitsandbytes waits for the whole device after each parameter. Its kernels run in the order in which they were queued; only
    states that are paged in from the host's memory must be there first. A process trains with one optimizer, so the wait is
    taken out of the module by which it is called.
    """
    module = sys.modules.get("bitsandbytes.optim.optimizer")  # not imported here: most runs do without
    if module is not None and isinstance(optimizer, module.Optimizer8bit) and not optimizer.is_paged:
        module.sync_gpu = _no_wait  # type: ignore[attr-defined]


def _no_wait(_parameter: Any) -> None:
    return None


def clip_while_reading(optimizer: Any, weights: Iterable[nn.Parameter], most: float) -> Tensor | None:
    """Have the next step of torch's fused AdamW take gradients whose norm is `most`, if it is larger; returns the norm.

    It divides each gradient by one number while it reads it, as it does for FP16's scaled losses. None where the optimizer is
    another, and gradients must be clipped before.
    """
    if not isinstance(optimizer, torch.optim.AdamW) or not all(group.get("fused") for group in optimizer.param_groups):
        return None
    norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    optimizer.grad_scale = ((norm.float() + TINY) / most).clamp(min=1)  # type: ignore[attr-defined]
    return norm
