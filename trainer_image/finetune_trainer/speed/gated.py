"""SwiGLU of a gated MLP, and all products with its adapters that read or write what is as wide as the MLP.

    gate, up = x Wᵀ + s (x Aᵀ) Bᵀ      hidden = silu(gate) up      and of the last layer hidden Aᵀ

A product with a rank of 16 costs what reading or writing its wide factor costs. Here all are computed from the tile that SwiGLU
has at hand, forward and backward: by Triton on CUDA, in plain torch elsewhere. Frozen products come and go without adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.speed.kernels import on_gpu
from finetune_trainer.speed.swiglu import swiglu, swiglu_backward

FASTER_WITH = frozenset({16})  # ranks; with 8 and with 32 products apart are faster on an H200 (benchmarks/h100.md)
NARROWEST, WIDEST = 16, 32  # ranks that tensor cores multiply, and whose sums a tile's program can hold


@dataclass(frozen=True)
class Tiles:
    """How a sweep is shared out: a tile's tokens and its numbers of the MLP's width; the warps of a program, how many of its
    tiles are on their way at once, and how many it takes in turn.
    """

    tokens: int
    width: int
    warps: int
    stages: int
    turns: int

    def told(self, rank: int) -> dict[str, Any]:
        tile = {"TILE_T": self.tokens, "TILE_F": self.width, "RANK": NARROWEST if rank <= NARROWEST else WIDEST}
        return tile | {"num_warps": self.warps, "num_stages": self.stages}


FORWARD = Tiles(64, 64, warps=4, stages=3, turns=28)  # along the width
BACKWARD = Tiles(64, 64, warps=4, stages=2, turns=32)  # along the tokens


@dataclass(frozen=True)
class Adapters:
    """What multiplies something wide: B of gate and up (width, rank), their scales; the last layer's A (rank, width)."""

    b: tuple[Tensor, Tensor]
    scales: tuple[float, float]
    a: Tensor


def takes(x: Tensor) -> bool:
    """Whether an MLP of these hidden states is computed here. Float32 on a GPU is not: tiles take twice the shared memory, more
    than an Ada has, and tensor cores would round to TF32 what torch's own products do not."""
    return not on_gpu(x) or x.element_size() == 2


def forward(gate: Tensor, up: Tensor, xa: Tensor, adapters: Adapters) -> tuple[Tensor, Tensor]:
    """(hidden, hidden Aᵀ) of the frozen products gate and up, (tokens, width); `xa` is x Aᵀ of both, (tokens, 2 rank)."""
    if not on_gpu(gate):
        hidden = swiglu(*_adapted(gate, up, xa, adapters))
        return hidden, hidden @ adapters.a.to(hidden.dtype).t()
    from finetune_trainer.speed import gated_triton  # Triton is there on CUDA machines only

    tokens, width, rank = _sizes(gate, adapters)
    grid = (-(-tokens // FORWARD.tokens), -(-width // (FORWARD.width * FORWARD.turns)))
    hidden, sums = torch.empty_like(gate), gate.new_empty((grid[1], tokens, rank), dtype=torch.float32)
    given = (gate, up, xa, *adapters.b, adapters.a, hidden, sums, tokens, width, rank, *adapters.scales, FORWARD.turns)
    gated_triton.forward[grid](*given, **FORWARD.told(rank))
    return hidden, sums.sum(0).to(gate.dtype)


def backward(gate: Tensor, up: Tensor, grad: Tensor, xa: Tensor, over: Tensor, adapters: Adapters) -> tuple[Tensor, ...]:
    """(d gate, d up, s d gate B beside s d up B, d B of gate, d B of up, d A).

    `grad` is the gradient of hidden without the last adapter's part, which is `over` A, and may be overwritten.
    """
    if not on_gpu(gate):
        return _plain_backward(gate, up, grad, xa, over, adapters)
    from finetune_trainer.speed import gated_triton

    tokens, width, rank = _sizes(gate, adapters)
    grid = (-(-width // BACKWARD.width), -(-tokens // (BACKWARD.tokens * BACKWARD.turns)))
    dgate, low = torch.empty_like(gate), gate.new_empty((grid[0], tokens, 2 * rank))
    sums, sizes = gate.new_empty((grid[1], 3, width, rank), dtype=torch.float32), (tokens, width, rank, *adapters.scales)
    given = (gate, up, grad, xa, over, *adapters.b, adapters.a, dgate, low, sums, *sizes, BACKWARD.turns)
    gated_triton.backward[grid](*given, **BACKWARD.told(rank))
    db_gate, db_up, da = sums.sum(0)
    return dgate, grad, low.sum(0), db_gate, db_up, da.t()


def _adapted(gate: Tensor, up: Tensor, xa: Tensor, adapters: Adapters) -> tuple[Tensor, Tensor]:
    parts = zip((gate, up), xa.chunk(2, dim=1), adapters.b, adapters.scales, strict=True)
    gate, up = (wide + scale * (low @ b.to(low.dtype).t()) for wide, low, b, scale in parts)
    return gate, up


def _plain_backward(gate: Tensor, up: Tensor, grad: Tensor, xa: Tensor, over: Tensor, adapters: Adapters) -> tuple[Tensor, ...]:
    grad = grad + over @ adapters.a.to(over.dtype)
    hidden, *wide = swiglu_backward(*_adapted(gate, up, xa, adapters), grad)
    parts = [*zip(wide, xa.chunk(2, dim=1), adapters.b, adapters.scales, strict=True)]
    low = torch.cat([scale * (d @ b.to(d.dtype)) for d, _, b, scale in parts], dim=1)
    return (*wide, low, *(scale * (d.t() @ x) for d, x, _, scale in parts), over.t() @ hidden)


def _sizes(gate: Tensor, adapters: Adapters) -> tuple[int, int, int]:
    """Tokens, width and rank."""
    return gate.shape[0], gate.shape[1], adapters.a.shape[0]
