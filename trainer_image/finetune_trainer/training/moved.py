"""Proof that a step made what it should have: trained weights moved, merged models answer as the trained one does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed
from finetune_trainer.ranks import zero

PART = 1 << 24  # elements summed up at a time: of an embedding, whole copies in double precision would be training's peak
FROZEN_SAMPLE = 4096  # elements looked at of each frozen tensor: enough to see an optimizer that holds it by mistake


@dataclass(frozen=True)
class Trace:
    """A tensor's sum, which a training step changes; of a frozen one, the sum over a few elements."""

    trained: bool
    total: float


def trace(model: Any) -> dict[str, Trace]:
    """One Trace for each parameter, to be compared after training."""
    return {name: _trace(parameter) for name, parameter in model.named_parameters()}


def _trace(parameter: torch.nn.Parameter) -> Trace:
    with zero.whole(parameter):
        return _trace_whole(parameter)


def _trace_whole(parameter: torch.nn.Parameter) -> Trace:
    master = zero.master(parameter)
    values = parameter.detach() if master is None else master
    if hasattr(values, "full_tensor"):  # FSDP's ranks hold a share each
        values = values.full_tensor()
    values = values.flatten()
    if not parameter.requires_grad:  # 4-bit weights that pass for 16-bit numbers may pass for NaN, which equals nothing
        values = values[:: max(1, values.numel() // FROZEN_SAMPLE)].contiguous().view(torch.uint8)
    # Squares: adapters start at zero mean, and a change of sign must show as well, so the plain sum is added.
    parts = (part.double() for part in values.split(PART))
    return Trace(parameter.requires_grad, sum(float(part.square().sum() + part.sum()) for part in parts))


def check_trained(before: dict[str, Trace], model: Any, steps: int) -> None:
    """Every trained tensor moved, no frozen one did, and no adapter's B is all zero (it would be a no-op).

    An adapter's A has no gradient until B has moved, so after a single step it may still be where it was.
    Raises StepFailed VerificationFailed with the first few names.
    """
    after = trace(model)
    frozen = [n for n, t in after.items() if not t.trained and t != before[n]]
    still = [n for n, t in after.items() if t.trained and t == before[n] and not (steps == 1 and "lora_A" in n)]
    dead = [n for n, t in after.items() if "lora_B" in n and t.trained and t.total == 0.0]
    wrong = {"frozen weights changed": frozen, "weights did not train": still, "adapters are zero": dead}
    for what, names in wrong.items():
        if names:
            raise _failed(f"{what}: {len(names)} tensors, such as {', '.join(names[:3])}")


def _failed(message: str) -> StepFailed:
    return StepFailed(StepReason.VerificationFailed, message)
