"""What can't be trained is told by prepare, of the model's configuration alone: no weights are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import train_tokenizer
from tests.trainer.families import configuration

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.reports import DatasetFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.training.trainable import check_trainable

MakeRun = Callable[..., RunConfig]
LORA = {"method": "LoRA", "maxSteps": 1, "globalBatchSize": 4, "maxLength": 128}


def model(folder: Path, family: str, **more: Any) -> Path:
    """Configuration and tokenizer of a tiny model, without weights."""
    configuration(family, **more).save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    return folder


def rows(longest: int) -> DatasetFacts:
    return DatasetFacts(
        format=DatasetFormat.MESSAGES,
        train_digest="sha256:0",
        test_digest="sha256:1",
        train_rows=1,
        validation_rows=0,
        test_rows=1,
        dropped_rows=0,
        train_tokens=1,
        longest_row_tokens=longest,
    )


def refusal(run: RunConfig, folder: Path, longest: int = 64) -> str:
    with pytest.raises(StepFailed) as refused:
        check_trainable(run, rows(longest), folder)
    return f"{refused.value.reason}: {refused.value.message}"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_what_can_be_trained_is_let_through(make_run: MakeRun, tmp_path: Path, family: str, method: str) -> None:
    check_trainable(make_run(training=LORA | {"method": method}), rows(64), model(tmp_path / "model", family))


def test_an_embedding_smaller_than_the_tokenizer(make_run: MakeRun, tmp_path: Path) -> None:
    said = refusal(make_run(training=LORA), model(tmp_path / "model", "llama", vocab_size=300))
    assert said.startswith("ModelUnsupported: spec.model: its tokenizer has tokens up to number ")
    assert "its embedding only 300 rows: resize the embedding" in said


def test_a_padded_embedding_is_let_through(make_run: MakeRun, tmp_path: Path) -> None:
    check_trainable(make_run(training=LORA), rows(64), model(tmp_path / "model", "llama", vocab_size=1024))


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_rows_and_answers_end_where_learned_positions_end(make_run: MakeRun, tmp_path: Path, family: str) -> None:
    folder = model(tmp_path / "model", family, max_position_embeddings=100)
    run = make_run(training=LORA, generation={"maxNewTokens": 20})
    check_trainable(run, rows(80), folder)
    assert "the longest row has 101 tokens, the model has learned 100 positions: set maxLength" in refusal(run, folder, 101)
    assert "a row of 81 tokens and an answer of 20 are more than the 100 positions" in refusal(run, folder, 81)


def test_rotary_positions_go_on(make_run: MakeRun, tmp_path: Path) -> None:
    check_trainable(make_run(training=LORA), rows(120), model(tmp_path / "model", "llama", max_position_embeddings=100))


def test_one_mistyped_target_among_others(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(training=LORA | {"lora": {"targets": ["q_proj", "v_porj"]}})
    assert refusal(run, model(tmp_path / "model", "llama")) == (
        "InvalidSpec: training.lora.targets: v_porj not in this model; its linear modules: ['down_proj', 'gate_proj', 'k_proj',"
        " 'lm_head', 'o_proj', 'q_proj', 'up_proj', 'v_proj']"
    )


def test_a_module_to_save_that_is_not_there(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(training=LORA | {"lora": {"modulesToSave": ["embed"]}})
    assert "training.lora.modulesToSave: embed not in this model" in refusal(run, model(tmp_path / "model", "llama"))


def test_what_peft_can_not_do_for_experts(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(training=LORA | {"lora": {"dropout": 0.1}})
    said = refusal(run, model(tmp_path / "model", "mixtral"))
    assert said.startswith("InvalidSpec: training.lora can't be had for this model: ")
    assert "lora_dropout" in said


@pytest.mark.parametrize("family", ["falcon_h1", "lfm2", "bloom"])
def test_packing_of_layers_that_see_across_rows(make_run: MakeRun, tmp_path: Path, family: str) -> None:
    folder = model(tmp_path / "model", family)
    check_trainable(make_run(training=LORA), rows(64), folder)
    assert "spec.training.packing: this model's layers can't keep rows apart" in refusal(
        make_run(training=LORA | {"packing": True}), folder
    )


def test_a_class_that_transformers_does_not_have(make_run: MakeRun, tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
    assert "ModelUnsupported: spec.model: transformers can't make a language model" in refusal(make_run(training=LORA), folder)


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        ("adam_w", "InvalidSpec: spec.training.optimizer: transformers knows no adam_w; use Auto or one of adafactor, "),
        ("galore_adamw", "InvalidSpec: spec.training.optimizer: galore_adamw can't be had here; use Auto, adamw_torch or "),
        ("adamw_torch_xla", "InvalidSpec: spec.training.optimizer: adamw_torch_xla can't be had here; use Auto, adamw_torch"),
    ],
)
def test_an_optimizer_that_is_not_there(make_run: MakeRun, tmp_path: Path, optimizer: str, sentence: str) -> None:
    said = refusal(make_run(training=LORA | {"optimizer": optimizer}), model(tmp_path / "model", "llama"))
    assert said.startswith(sentence)


def test_an_optimizer_of_bitsandbytes_is_let_through_though_prepare_has_no_gpu(make_run: MakeRun, tmp_path: Path) -> None:
    check_trainable(make_run(training=LORA | {"optimizer": "paged_adamw_8bit"}), rows(64), model(tmp_path / "model", "llama"))
