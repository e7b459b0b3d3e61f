"""What a job's status says of the memory estimate."""

from __future__ import annotations

import pytest
from tests.builders import FIT

from finetune_operator.finetunejob.fit import judge
from finetune_trainer.contract.devices import Devices

NEED = FIT.predicted_bytes


@pytest.mark.parametrize(
    ("available", "status", "reason"),
    [(None, "Unknown", "MemoryUnknown"), (NEED, "True", "EnoughMemory"), (NEED - 1, "False", "DoesNotFit")],
)
def test_training_fits_where_it_is_estimated_to_need_no_more_than_there_is(
    available: int | None, status: str, reason: str
) -> None:
    found = judge(FIT.model_copy(update={"available_bytes": available}), Devices())
    assert (found.status, found.reason) == (status, reason)


@pytest.mark.parametrize(("gpus", "remedy"), [(1, "take a larger GPU"), (0, "raise spec.stages.train.resources.limits.memory")])
def test_the_remedy_is_the_device_that_training_runs_on(gpus: int, remedy: str) -> None:
    found = judge(FIT.model_copy(update={"available_bytes": NEED - 1}), Devices(gpus=gpus))
    assert found.message.endswith(f", or {remedy}")
