"""Training that validation decides on: the best weights are kept, training ends early, and a resumed run decides alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.trainer.entries import PAIRS, prepare
from tests.trainer.training.test_train import LORA, MakeRun, committed, preempted, trained

from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.training.validation import best_step, validations

STEADY = LORA | {"schedule": "constant", "warmupRatio": 0, "evaluateEverySteps": 1, "checkpoint": {"everySteps": 1, "keep": 1}}
OTHER_ANSWERS = [(question, PAIRS[index - 1][1]) for index, (question, _) in enumerate(PAIRS)]  # learning them by heart hurts


def elsewhere(run: RunConfig, store: str) -> RunConfig:
    return run.model_copy(update={"store": StoreConfig(uri=f"pvc://store/{store}")})


def weights(run: RunConfig, tmp_path: Path) -> bytes:
    return (committed(run, tmp_path) / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_best_weights_are_kept_and_training_ends_early(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = STEADY | {"maxSteps": 60, "earlyStopping": {"patience": 3}, "keepCheckpoint": "Best"}
    run = make_run(training=settings)
    prepare(run, tmp_path, validation=OTHER_ANSWERS)
    result, _ = trained(run, tmp_path)
    assert result.train is not None
    best = int(capsys.readouterr().out.rpartition("validation was best after step ")[2].split(":")[0])
    assert best > 1
    assert result.train.steps == best + 3 < 60

    only_so_far = elsewhere(make_run(training=STEADY | {"maxSteps": best}), "so-far")
    prepare(only_so_far, tmp_path, validation=OTHER_ANSWERS)
    assert trained(only_so_far, tmp_path)[0].train.validation_loss == result.train.validation_loss  # type: ignore[union-attr]
    assert weights(run, tmp_path) == weights(only_so_far, tmp_path)

    broken = elsewhere(run, "broken")
    prepare(broken, tmp_path, validation=OTHER_ANSWERS)
    preempted(broken, tmp_path, after=best + 1)
    resumed, _ = trained(broken, tmp_path)
    assert resumed.train is not None
    assert (resumed.train.steps, resumed.train.resumed_from_step) == (best + 3, best + 1)
    assert weights(broken, tmp_path) == weights(run, tmp_path)


def test_the_best_is_the_earliest_of_equals() -> None:
    log = [
        {"step": 2, "loss": 1.0},
        *({"step": step, "eval_loss": loss} for step, loss in ((2, 1.5), (4, 1.0), (6, 1.0), (8, 1.2))),
    ]
    assert validations(log) == [(2, 1.5), (4, 1.0), (6, 1.0), (8, 1.2)]
    assert best_step(log) == 4
    assert best_step(log[:1]) is None


def test_noise_on_the_embeddings_is_for_training_alone(make_run: MakeRun, tmp_path: Path) -> None:
    """At rate 1e-12 nothing is learned: the training loss shows the noise, the validation loss must not."""
    seen = {}
    for alpha in (None, 50.0):
        settings = LORA | {"maxSteps": 1, "learningRate": 1e-12, "neftuneNoiseAlpha": alpha}
        run = elsewhere(make_run(training=settings), f"noise-{alpha}")
        prepare(run, tmp_path, validation=PAIRS[:2])
        result, losses = trained(run, tmp_path)
        assert result.train is not None
        seen[alpha] = (losses.by_step[1], result.train.validation_loss)
    assert seen[50.0][1] == pytest.approx(seen[None][1])
    assert seen[50.0][0] != pytest.approx(seen[None][0], rel=1e-3)


def test_adapters_begin_as_asked(make_run: MakeRun, tmp_path: Path) -> None:
    first = {}
    for init in ("Default", "Gaussian"):
        run = elsewhere(make_run(training=LORA | {"maxSteps": 2, "lora": {"init": init}}), init)
        prepare(run, tmp_path)
        losses = trained(run, tmp_path)[1].by_step
        config = json.loads((committed(run, tmp_path) / "adapter_config.json").read_text())
        first[init] = (losses[1], losses[2], config["init_lora_weights"])
    assert first["Default"][0] == first["Gaussian"][0]  # the base model's, as the second matrix is zero
    assert first["Default"][1] != first["Gaussian"][1]
    assert (first["Default"][2], first["Gaussian"][2]) == (True, "gaussian")
