"""A gated MLP's adapters, multiplied in the sweep that computes SwiGLU: in plain torch, and by kernels that are interpreted."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
from tests.trainer.speed.test_acceleration import adapted, llama, loss_and_gradients
from torch import Tensor
from torch.nn import functional

from finetune_trainer.speed import gated
from finetune_trainer.speed.fused_lora import fuse
from finetune_trainer.speed.swiglu import swiglu

SCALES = (2.0, 0.5)
ON_GPUS = gated.FORWARD, gated.BACKWARD


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


def assert_right(tokens: int, width: int, rank: int, atol: float = 1e-4) -> None:
    (gate, up, xa, over), adapters = numbers(tokens, width, rank)
    grad = torch.randn(tokens, width)
    forward, backward = by_autograd(gate, up, grad, xa, over, adapters)
    torch.testing.assert_close(gated.forward(gate, up, xa, adapters), forward, rtol=1e-4, atol=atol)
    found = gated.backward(gate, up, grad.clone(), xa, over, adapters)
    torch.testing.assert_close([*found], backward, rtol=1e-4, atol=atol)


def test_both_directions_are_those_of_products_apart() -> None:
    assert_right(24, 96, 4)


def test_an_mlp_in_float32_on_a_gpu_has_its_products_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    network = adapted(llama(), r=16)
    wanted, _ = loss_and_gradients(network)
    fuse(network)
    monkeypatch.setattr(gated, "on_gpu", lambda _: True)
    for kernels in ("forward", "backward"):
        monkeypatch.setattr(gated, kernels, None)
    assert loss_and_gradients(network)[0] == pytest.approx(wanted, rel=1e-6)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in ("sigmoid", "zeros"):  # triton has made them when it was imported, for GPUs
        monkeypatch.setattr(triton.language, name, triton.jit(getattr(triton.language, name).fn))
    module = importlib.import_module("finetune_trainer.speed.gated_triton")
    importlib.reload(module)
    monkeypatch.setattr(gated, "on_gpu", lambda _: True)
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


@pytest.mark.usefixtures("interpreted")
def test_kernels_compute_the_same_by_the_tiles_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs of the way back take all their turns, and another begins for one token."""
    monkeypatch.setattr(gated, "FORWARD", replace(ON_GPUS[0], turns=1))  # one holds the width, others wait for nothing
    monkeypatch.setattr(gated, "BACKWARD", ON_GPUS[1])
    assert_right(2 * 64 * 32 + 1, 40, 16, atol=2e-3)  # sums over so many tokens, in float32


@pytest.mark.usefixtures("interpreted")
def test_what_small_adapters_add_is_not_rounded_away() -> None:
    """After the first steps it is less than the last of 16 bits of what it is added to. In float16: the interpreter multiplies
    bfloat16's bits as integers."""
    (gate, up, xa, _), adapters = numbers(256, 64, 16, torch.float16)
    small, none = ((adapters.b[0].sign() * size, adapters.b[1].sign() * size) for size in (2e-5, 0.0))

    def hidden(b: tuple[Tensor, Tensor], function: Any, dtype: torch.dtype) -> Tensor:
        given = (one.to(dtype) for one in (gate, up, xa))
        found: Tensor = function(*given, gated.Adapters(b, SCALES, adapters.a.to(dtype)))[0]
        return found.double()

    def plain(gate: Tensor, up: Tensor, xa: Tensor, adapters: gated.Adapters) -> tuple[Tensor]:
        return (swiglu(*gated._adapted(gate, up, xa, adapters)),)

    exact, found, lost = (
        hidden(small, function, dtype) - hidden(none, function, dtype)
        for function, dtype in ((plain, torch.float64), (gated.forward, torch.float16), (plain, torch.float16))
    )
    assert arriving(found, exact) == pytest.approx(1, abs=0.1)
    assert arriving(lost, exact) < 0.8, "added in 16 bits it would be"


def arriving(found: Tensor, exact: Tensor) -> float:
    """How much of a change is there, its rounding averaged away."""
    return float((found * exact).sum() / exact.square().sum())
