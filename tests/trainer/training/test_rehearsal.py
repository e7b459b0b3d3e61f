"""The longest rows go through the model before step 1, and no number of the training differs for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.trainer.entries import PAIRS, context, prepare
from tests.trainer.training.test_train import LORA, MakeRun, trained
from tests.trainer.training.test_validation import elsewhere, weights

from finetune_trainer.contract.reports import Progress
from finetune_trainer.stages import train
from finetune_trainer.training.loop import Loop
from finetune_trainer.training.rehearsal import Rehearsal

NOISY = LORA | {"maxSteps": 3, "lora": {"dropout": 0.1}, "neftuneNoiseAlpha": 5}


@pytest.mark.parametrize("settings", [NOISY, NOISY | {"packing": True, "globalBatchSize": 2, "microBatchSize": 1}])
def test_losses_and_weights_stay_bit_equal(
    settings: dict[str, object], make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(training=settings)
    prepare(run, tmp_path)
    _, losses = trained(run, tmp_path)
    plain = elsewhere(run, "plain")
    prepare(plain, tmp_path)
    monkeypatch.setattr(Rehearsal, "on_train_begin", lambda *_, **__: None)
    assert trained(plain, tmp_path)[1].by_step == losses.by_step
    assert weights(plain, tmp_path) == weights(run, tmp_path)


def test_the_longest_rows_are_measured_first_and_reported(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int]] = []
    plain = Loop.training_step

    def step(loop: Loop, model: object, inputs: dict[str, torch.Tensor], count: object = None) -> torch.Tensor:
        seen.append((loop.state.global_step, int(inputs["attention_mask"].sum(dim=1).min())))
        return plain(loop, model, inputs, count)

    monkeypatch.setattr(Loop, "training_step", step)
    run = make_run(training=LORA | {"maxSteps": 2})
    rows = [*PAIRS[:3], ("Count?", "0 1 2 3 4 5 6 7 8 9. " * 3), *PAIRS[3:], ("Count again?", "9 8 7 6 5 4 3 2 1 0. " * 3)]
    prepare(run, tmp_path, train=rows)
    readings: list[Progress] = []
    result = train.run(context(run, "train", tmp_path, readings.append))
    assert result is not None
    assert result.fit is not None
    assert result.train is not None
    assert len(seen) == 1 + 2 * 2  # two steps of two micro-batches
    assert seen[0][1] > 60 > max(step[1] for step in seen[1:3])
    measured = next(reading for reading in readings if reading.activity == "measured the longest rows")
    assert measured.step == 0
    assert measured.memory_bytes is not None
    assert result.fit.measured_bytes == result.train.peak_memory_bytes
    assert result.fit.measured_bytes is not None
    assert result.fit.measured_bytes >= measured.memory_bytes
    assert "memory for the longest rows: " in capsys.readouterr().out


def test_memory_that_does_not_hold_the_longest_rows_runs_out_before_step_1(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Loop.training_step

    def step(loop: Loop, model: object, inputs: dict[str, torch.Tensor], count: object = None) -> torch.Tensor:
        if inputs["input_ids"].shape[1] > 60:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(loop, model, inputs, count)

    monkeypatch.setattr(Loop, "training_step", step)
    run = make_run(training=LORA | {"maxSteps": 8})
    prepare(run, tmp_path, train=[*PAIRS, ("Count?", "0 1 2 3 4 5 6 7 8 9. " * 3)])
    readings: list[Progress] = []
    with pytest.raises(torch.OutOfMemoryError):
        train.run(context(run, "train", tmp_path, readings.append))
    assert max(reading.step for reading in readings) == 0
