"""How several ranks share out a run: the strategy that Auto takes, each rank's part of the global batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import DatasetFacts, ModelFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.memory.fit import fit_for

MakeRun = Callable[..., RunConfig]
MISTRAL = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
MODEL = ModelFacts(revision="r", digest="d", parameters=7_241_732_096, architecture="Mistral", bytes=1)
ROWS = DatasetFacts(
    format="Text",
    train_digest="d",
    test_digest="d",
    train_rows=100,
    validation_rows=0,
    test_rows=0,
    dropped_rows=0,
    train_tokens=1000,
    longest_row_tokens=512,
)
GIB = 1 << 30


def fitted(make_run: MakeRun, tmp_path: Path, training: dict[str, Any], **devices: Any) -> Any:
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    run = make_run(training={"globalBatchSize": 16} | training, devices={"gpus": 4, "memoryBytes": 80 * GIB} | devices)
    return fit_for(run, MODEL, ROWS, tmp_path)


@pytest.mark.parametrize(
    ("training", "devices", "strategy"),
    [
        ({"method": "QLoRA"}, {"gpus": 1}, None),
        ({"method": "QLoRA"}, {}, Strategy.DDP),
        ({"method": "QLoRA"}, {"strategy": "FSDP"}, Strategy.FSDP),
        ({"method": "Full"}, {}, Strategy.FSDP),  # 7 billion weights of 10 bytes and more don't fit one GPU
        ({"method": "QLoRA", "precision": "FP32"}, {"gpus": 0, "nodes": 2}, Strategy.DDP),
        ({"method": "QLoRA", "quantization": {"bits": 8}}, {}, Strategy.DDP),
        ({"method": "QLoRA", "lora": {"modulesToSave": ["lm_head"]}}, {}, Strategy.DDP),
    ],
)
def test_auto_shards_what_does_not_fit(
    make_run: MakeRun, tmp_path: Path, training: dict[str, Any], devices: dict[str, Any], strategy: Strategy | None
) -> None:
    assert fitted(make_run, tmp_path, training, **devices).strategy is strategy


def test_8_bit_weights_are_not_shared_out_even_where_they_do_not_fit(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"it fits with spec\.training\.quantization\.bits: 4") as refused:
        fitted(make_run, tmp_path, {"method": "QLoRA", "quantization": {"bits": 8}}, memoryBytes=8 * GIB)
    assert refused.value.exit_code is ExitCode.DOES_NOT_FIT


def test_modules_trained_whole_are_not_shared_out_even_where_they_do_not_fit(make_run: MakeRun, tmp_path: Path) -> None:
    lora = {"method": "LoRA", "lora": {"modulesToSave": ["embed_tokens", "lm_head"]}}
    assert fitted(make_run, tmp_path, {"method": "LoRA"}, memoryBytes=12 * GIB).strategy is Strategy.FSDP
    with pytest.raises(StepFailed, match=r"LoRA with microBatchSize .* needs") as refused:
        fitted(make_run, tmp_path, lora, memoryBytes=12 * GIB)
    assert refused.value.exit_code is ExitCode.DOES_NOT_FIT


def test_micro_batches_of_all_ranks_make_the_global_batch(make_run: MakeRun, tmp_path: Path) -> None:
    found = fitted(make_run, tmp_path, {"globalBatchSize": 24}, nodes=2)
    assert 24 % (8 * found.micro_batch_size) == 0


@pytest.mark.parametrize("training", [{"globalBatchSize": 6}, {"microBatchSize": 8}])
def test_a_batch_that_can_not_be_shared_out_is_refused(make_run: MakeRun, tmp_path: Path, training: dict[str, Any]) -> None:
    with pytest.raises(StepFailed, match=r"spec\.training\.globalBatchSize must be a multiple of numNodes") as refused:
        fitted(make_run, tmp_path, training)
    assert refused.value.exit_code is ExitCode.BAD_CONFIG


@pytest.mark.parametrize(
    "whole", [{"keepCheckpoint": "Best", "evaluateEverySteps": 1}, {"optimizer": "adamw_bnb_8bit"}, {"objective": "ORPO"}]
)
def test_auto_takes_no_strategy_that_the_settings_do_not_go_with(
    make_run: MakeRun, tmp_path: Path, whole: dict[str, Any]
) -> None:
    """Where the model fits no single GPU the job is refused before it holds any."""
    assert fitted(make_run, tmp_path, {"method": "LoRA"}, memoryBytes=12 * GIB).strategy is Strategy.FSDP
    with pytest.raises(StepFailed) as refused:
        fitted(make_run, tmp_path, {"method": "LoRA"} | whole, memoryBytes=12 * GIB)
    assert refused.value.exit_code is ExitCode.DOES_NOT_FIT
    assert fitted(make_run, tmp_path, {"method": "LoRA"} | whole).strategy is Strategy.DDP
