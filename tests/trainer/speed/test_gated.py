"""A gated MLP's adapters, multiplied in the sweep that computes SwiGLU: in plain torch, and by kernels that are interpreted."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from torch.nn import functional

from finetune_trainer.speed import gated

SCALES = (2.0, 0.5)


def numbers(tokens: int, width: int, rank: int, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], gated.Adapters]:
    """Gate, up, x Aᵀ of both, and the last layer's s dy B; the adapters in float32."""
    torch.manual_seed(0)
    made = [torch.randn(tokens, n, dtype=dtype) for n in (width, width, 2 * rank, rank)]
    b = torch.randn(width, rank), torch.randn(width, rank)
    return made, gated.Adapters(b, SCALES, torch.randn(rank, width) / 8)


def by_autograd(
    gate: Tensor, up: Tensor, grad: Tensor, xa: Tensor, over: Tensor, adapters: gated.Adapters
) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """What both directions are, each product by itself."""
    given = [gate, up, xa, *adapters.b, adapters.a]
    gate, up, xa, b_gate, b_up, a = (one.detach().clone().requires_grad_() for one in given)
    xg, xu = xa.chunk(2, dim=1)
    hidden = functional.silu(gate + SCALES[0] * xg @ b_gate.t()) * (up + SCALES[1] * xu @ b_up.t())
    ha = hidden @ a.t()
    of = (hidden * grad).sum() + (ha * over).sum()
    dgate, dup, low, db_gate, db_up, da = torch.autograd.grad(of, [gate, up, xa, b_gate, b_up, a])
    return (hidden.detach(), ha.detach()), [dgate, dup, low, db_gate, db_up, da]


def assert_right(tokens: int, width: int, rank: int) -> None:
    (gate, up, xa, over), adapters = numbers(tokens, width, rank)
    grad = torch.randn(tokens, width)
    forward, backward = by_autograd(gate, up, grad, xa, over, adapters)
    torch.testing.assert_close(gated.forward(gate, up, xa, adapters), forward, rtol=1e-4, atol=1e-4)
    found = gated.backward(gate, up, grad.clone(), xa, over, adapters)
    torch.testing.assert_close([*found], backward, rtol=1e-4, atol=1e-4)


def test_both_directions_are_those_of_products_apart() -> None:
    assert_right(24, 96, 4)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in ("sigmoid", "zeros"):  # triton has made them when it was imported, for GPUs
        monkeypatch.setattr(triton.language, name, triton.jit(getattr(triton.language, name).fn))
    module = importlib.import_module("finetune_trainer.speed.gated_triton")
    importlib.reload(module)
    monkeypatch.setattr(gated, "_on_gpu", lambda _: True)
    monkeypatch.setattr(gated, "FORWARD", gated.Tiles(16, 16, 4, 2, turns=2))
    monkeypatch.setattr(gated, "BACKWARD", gated.Tiles(16, 16, 4, 2, turns=3))
    yield
    monkeypatch.undo()
    importlib.reload(module)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("tokens", "width", "rank"), [(64, 64, 16), (21, 40, 16), (50, 72, 4), (5, 24, 32)])
def test_kernels_compute_the_same(tokens: int, width: int, rank: int) -> None:
    """Tiles that are filled and such that are not, and ranks that tensor cores do not multiply."""
    assert_right(tokens, width, rank)
