"""What is told to transformers' Trainer."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from transformers import get_scheduler

from finetune_trainer.contract.training import Training

SCHEDULES: tuple[str, ...] = get_args(Training.model_fields["schedule"].annotation)
STEPS, WARMUP = 20, 4


def rates(name: str) -> list[float]:
    """The learning rate at each step, as transformers schedules it by the name alone; its peak is 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_need_nothing_but_their_name(name: str) -> None:
    found = rates(name)
    assert max(found) == found[WARMUP] == 1
    assert found[0] == (1 if name == "constant" else 0)


def test_no_two_schedules_are_the_same() -> None:
    """Those left out would be: polynomial is linear, and cosine_with_restarts cosine, without further settings."""
    assert {"linear", "cosine", "inverse_sqrt"} <= set(SCHEDULES)
    for first, second in itertools.combinations(SCHEDULES, 2):
        assert rates(first) != pytest.approx(rates(second), abs=1e-3), (first, second)
