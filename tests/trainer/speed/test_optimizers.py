"""Optimizers step alike without the waits that only paged states need, and without a pass that clips gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit
from bitsandbytes.optim import optimizer as module

from finetune_trainer.speed.optimizers import clip_while_reading, wait_for_pages_only


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each parameter after which an optimizer waited for the device."""
    seen: list[Any] = []
    monkeypatch.setattr(module, "sync_gpu", seen.append)
    return seen


def weights_after_three_steps(kind: Any, *, mended: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(64, 128)) for _ in range(3)]
    optimizer = kind(weights, lr=1e-2)
    if mended:
        wait_for_pages_only(optimizer)
    for _ in range(3):
        for weight in weights:
            weight.grad = weight.detach() ** 3
        optimizer.step()
    return [weight.detach() for weight in weights]


def test_states_on_the_device_are_not_waited_for(waits: list[Any]) -> None:
    plain = weights_after_three_steps(AdamW8bit, mended=False)
    assert len(waits) == 9  # or bitsandbytes has changed, and nothing need be mended
    waits.clear()

    mended = weights_after_three_steps(AdamW8bit, mended=True)

    assert waits == []
    for one, other in zip(plain, mended, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_pages_are_waited_for(waits: list[Any]) -> None:
    weights_after_three_steps(PagedAdamW8bit, mended=True)
    assert len(waits) >= 9


def test_other_optimizers_are_left_alone(waits: list[Any]) -> None:
    wait_for_pages_only(torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]))
    assert module.sync_gpu == waits.append


@pytest.mark.parametrize("most", [0.5, 1e3], ids=["clipped", "short enough"])
def test_fused_adamw_clips_while_it_reads(most: float) -> None:
    found = []
    for alone in (True, False):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(64, 3)), torch.nn.Parameter(torch.randn(7))]
        optimizer = torch.optim.AdamW(weights, lr=0.1, fused=True)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            norm = clip_while_reading(optimizer, weights, most) if alone else torch.nn.utils.clip_grad_norm_(weights, most)
            optimizer.step()
        assert norm is not None
        found.append([norm, *weights, *(optimizer.state[weight]["exp_avg_sq"] for weight in weights)])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain)
    assert found[0][0] > 10


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW], ids=["SGD", "AdamW that is not fused"])
def test_other_optimizers_find_gradients_clipped_before(make: Any) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    assert clip_while_reading(make([weight], lr=0.1), [weight], 0.1) is None
