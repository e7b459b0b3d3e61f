"""On a GPU: the kernels of gated.py and add_norm.py in BF16 are plain torch's in float32, but for BF16's rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from finetune_trainer.speed import add_norm, gated

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton's kernels are compiled for a GPU")
WIDTH, ROUNDING = 1408, 0.005  # of BF16's eight bits, a few times over


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.cpu().float() - other).norm() / other.norm())


def both(function: Any, *given: Tensor, **told: Any) -> list[float]:
    """How far a function's answers on the GPU are from those on the CPU, of the same numbers in BF16."""
    rounded = [one.bfloat16() for one in given]
    found = function(*(one.cuda() for one in rounded), **{k: v[0] for k, v in told.items()})
    wanted = function(*(one.float() for one in rounded), **{k: v[1] for k, v in told.items()})
    return [apart(one, other) for one, other in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("tokens", [4096, 1000])
@pytest.mark.parametrize("rank", [8, 16, 32])
def test_swiglu_with_its_adapters(tokens: int, rank: int) -> None:
    torch.manual_seed(0)
    gate, up, grad, xa, over = (torch.randn(tokens, n) for n in (WIDTH, WIDTH, WIDTH, 2 * rank, rank))
    b, a = (torch.randn(WIDTH, rank) / 8, torch.randn(WIDTH, rank) / 8), torch.randn(rank, WIDTH) / 32
    b, a = tuple(one.bfloat16().float() for one in b), a.bfloat16().float()  # type: ignore[assignment]
    adapters = [gated.Adapters((b[0].to(on), b[1].to(on)), (2.0, 0.5), a.to(on)) for on in ("cuda", "cpu")]
    assert max(both(gated.forward, gate, up, xa, adapters=adapters)) < ROUNDING
    assert max(both(gated.backward, gate, up, grad, xa, over, adapters=adapters)) < ROUNDING


@pytest.mark.parametrize("width", [WIDTH, 4096])
def test_sums_and_their_norms(width: int) -> None:
    torch.manual_seed(0)
    x, more, of_sum, given, weight = (torch.randn(*shape, width) for shape in ((1, 300), (1, 300), (1, 300), (1, 300), ()))
    assert max(both(add_norm.forward, x, more, weight, epsilon=[1e-5, 1e-5])) < ROUNDING
    summed, _, scale = add_norm.forward(x, more, weight, 1e-5)

    def backward(given: Tensor, of_sum: Tensor, both: Tensor, weight: Tensor) -> list[Tensor]:
        return [add_norm.backward(given, of_sum, both, weight, scale.to(given.device))]

    assert max(both(backward, given, of_sum, summed, weight)) < ROUNDING
