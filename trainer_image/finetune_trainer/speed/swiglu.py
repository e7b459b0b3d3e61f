"""silu(gate) * up and its backward pass, each in one sweep over memory on CUDA (Triton), in plain torch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 4096  # elements per Triton program


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; all of one shape."""
    if not gate.is_cuda:
        return functional.silu(gate) * up
    from finetune_trainer.speed import swiglu_triton  # Triton is there on CUDA machines only

    out = torch.empty_like(gate)
    swiglu_triton.forward[_grid(gate)](gate, up, out, gate.numel(), BLOCK=BLOCK)
    return out


def swiglu_backward(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(silu(gate) * up, d gate, d up) for the gradient of the product, which may be overwritten.

    With sigma = sigmoid(gate): d up = grad silu(gate); d gate = grad up sigma (1 + gate (1 - sigma)).
    """
    if not gate.is_cuda:
        sigma = torch.sigmoid(gate)
        silu = gate * sigma
        return silu * up, grad * up * sigma * (1 + gate * (1 - sigma)), grad * silu
    from finetune_trainer.speed import swiglu_triton

    hidden, dgate = torch.empty_like(gate), torch.empty_like(gate)
    swiglu_triton.backward[_grid(gate)](gate, up, grad, hidden, dgate, gate.numel(), BLOCK=BLOCK)
    return hidden, dgate, grad


def _grid(x: Tensor) -> tuple[int]:
    return (-(-x.numel() // BLOCK),)
