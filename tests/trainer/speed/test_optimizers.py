"""bitsandbytes' optimizers step alike without the waits that only paged states need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit
from bitsandbytes.optim import optimizer as module

from finetune_trainer.speed.optimizers import wait_for_pages_only


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
