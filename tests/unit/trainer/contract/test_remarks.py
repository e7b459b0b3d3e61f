"""Settings that train something, but hardly what was meant: each is remarked on by prepare, once the rows are counted."""

from __future__ import annotations

from typing import Any

import pytest
from tests.builders import DATASET, make_job

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.finetunejob.run_config import run_config
from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.remarks import optimizer_steps, remarks
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Training

POSITIONS = 2048  # DATASET has 80 rows to train on, of 64 tokens at most, 4000 in all

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "a global batch above the number of rows": (
        {"training": {"globalBatchSize": 128}},
        "BatchAboveRows",
        "spec.training.globalBatchSize is 128, but there are 80 rows to train on, so that each pass over them is one optimizer"
        " step (3 in all); lower it to 40 or less",
    ),
    "a global batch above the number of packed rows": (
        {"training": {"packing": True, "maxLength": 512}},
        "BatchAboveRows",
        "spec.training.globalBatchSize is 16, but there are 8 packed rows to train on",
    ),
    "a hundredth of an epoch": (
        {"training": {"epochs": 0.01}},
        "RowsNotReached",
        "spec.training.epochs is 0.01: training ends after 16 of 80 rows, in 1 optimizer steps; raise it if all",
    ),
    "few steps": ({"training": {"maxSteps": 2}}, "RowsNotReached", "spec.training.maxSteps is 2: training ends after 32 of 80"),
    "a warm-up as long as the run": (
        {"training": {"warmupRatio": 0.5}},
        "LongWarmup",
        "spec.training.warmupRatio is 0.5: the learning rate rises for that share of the steps",
    ),
    "a learning rate of more than a hundred times the customary": (
        {"training": {"learningRate": 0.021}},
        "HighLearningRate",
        "spec.training.learningRate is 0.021; 0.0002 is customary for SFT with method QLoRA",
    ),
    "an adapter's learning rate for every weight": (
        {"training": {"learningRate": 0.005, "method": "Full"}},
        "HighLearningRate",
        "spec.training.learningRate is 0.005; 2e-05 is customary for SFT with method Full",
    ),
    "a learning rate of less than a thousandth of the customary": (
        {"training": {"learningRate": 1.9e-7}},
        "LowLearningRate",
        "spec.training.learningRate is 1.9e-07; 0.0002 is customary for SFT with method QLoRA",
    ),
    "validations after the end": (
        {"training": {"evaluateEverySteps": 100}},
        "RarelyValidated",
        "spec.training.evaluateEverySteps is 100, but there are 15 optimizer steps in all",
    ),
    "patience beyond the end": (
        {"training": {"evaluateEverySteps": 5, "earlyStopping": {"patience": 2}}},
        "RarelyValidated",
        "spec.training.earlyStopping can't end this training: 15 optimizer steps hold 3 validations, and it waits for 2 after",
    ),
}


def run_of(**spec: Any) -> RunConfig:
    if "evaluateEverySteps" in spec.get("training", {}):
        spec["dataset"] = {"uri": "hf://a/b", "validation": {"fraction": 0.1}}
    return run_config(FineTuneJob.model_validate(make_job(**spec)))


@pytest.mark.parametrize("fault", CASES)
def test_what_is_hardly_meant_is_said(fault: str) -> None:
    spec, reason, sentence = CASES[fault]
    (remark,) = remarks(run_of(**spec), DATASET, POSITIONS)
    assert (remark.reason, remark.message[: len(sentence)]) == (reason, sentence)


def test_rows_beyond_the_positions_of_a_rotary_model_are_said() -> None:
    (remark,) = remarks(run_of(), DATASET, 32)
    assert remark.reason == "RowsBeyondPositions"
    assert remark.message.startswith("the longest row has 64 tokens, and the model was made for 32")


def test_a_column_that_mostly_is_a_part_of_the_question_is_not_passed_over_in_silence() -> None:
    (remark,) = remarks(run_of(), DATASET.model_copy(update={"unused_columns": ("id", "context")}), None)
    assert remark.reason == "ColumnUnused"
    assert remark.message.startswith("nothing is learned from the column context; if it is a part of the question, write spec")


@pytest.mark.parametrize(
    ("format", "column", "said"),
    [
        (DatasetFormat.PROMPT_COMPLETION, "choices", "if it is a part of the question, write spec.dataset.columns"),
        (DatasetFormat.PROMPT_COMPLETION, "label", "if it says which answers are to be avoided, they are learned all the same"),
        (DatasetFormat.TEXT, "role", "if each row is one turn of a conversation, write the turns of one into a row"),
    ],
)
def test_a_column_that_changes_what_a_row_means_is_not_passed_over_in_silence(
    format: DatasetFormat, column: str, said: str
) -> None:
    (remark,) = remarks(run_of(), DATASET.model_copy(update={"format": format, "unused_columns": ("id", column)}), None)
    assert remark.reason == "ColumnUnused"
    assert remark.message.startswith(f"nothing is learned from the column {column}; {said}")


def test_rows_beyond_a_window_that_llama_cpp_leaves_out_are_said() -> None:
    gguf = [{"name": "q8", "format": "GGUF", "quantization": "Q8_0"}]
    (remark,) = remarks(run_of(artifacts=gguf), DATASET, POSITIONS, 32)
    assert remark.reason == "WindowLeftOut"
    assert remark.message.startswith("the longest row has 64 tokens, and the model looks back 32; llama.cpp lets it look back")
    assert remarks(run_of(artifacts=gguf), DATASET, POSITIONS, 64) == ()
    assert remarks(run_of(artifacts=[]), DATASET, POSITIONS, 32) == ()


def test_experts_that_qlora_does_not_quantize_are_said() -> None:
    (remark,) = remarks(run_of(), DATASET, POSITIONS, experts=0.806)
    assert remark.reason == "ExpertsNotQuantized"
    assert remark.message.startswith("spec.training.method is QLoRA, but 81% of the model's parameters are those of its exp")
    assert remarks(run_of(), DATASET, POSITIONS) == ()
    assert remarks(run_of(training={"method": "LoRA"}), DATASET, POSITIONS, experts=0.8) == ()


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("spec.dataset.systemPrompt", {"dataset": {"uri": "hf://a/b", "systemPrompt": "Be brief."}}),
        ("spec.training.completionOnlyLoss", {"training": {"completionOnlyLoss": False}}),
        (
            "spec.model.chatTemplate",
            {"model": {"uri": "hf://a/b", "chatTemplate": {"configMapKeyRef": {"name": "t", "key": "k"}}}},
        ),
    ],
)
def test_what_plain_text_does_not_need_is_said(field: str, spec: dict[str, Any]) -> None:
    text = DATASET.model_copy(update={"format": DatasetFormat.TEXT})
    (remark,) = remarks(run_of(**spec), text, None)
    assert remark.message == f"{field} does nothing: rows of format Text are learned as they stand; remove it"
    assert remarks(run_of(**spec), DATASET, None) == ()


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"learningRate": 0.02},
        {"learningRate": 0.001, "objective": "DPO"},
        {"warmupRatio": 0.9, "schedule": "constant"},  # which has none
        {"evaluateEverySteps": 5, "earlyStopping": {"patience": 1}},
        {"globalBatchSize": 80},
        {"maxSteps": 5},
        {"evaluateEverySteps": 15},
    ],
)
def test_nothing_is_said_of_what_people_do(training: dict[str, Any]) -> None:
    assert remarks(run_of(training=training), DATASET, POSITIONS) == ()
    assert remarks(run_of(training=training), DATASET, DATASET.longest_row_tokens) == ()
    assert remarks(run_of(training=training), DATASET, None) == ()


def test_steps_are_counted_as_transformers_counts_them() -> None:
    """ceil(epochs x ceil(rows / batch)): the last step of a pass takes what is left."""
    assert optimizer_steps(Training(), DATASET) == 15
    assert optimizer_steps(Training(global_batch_size=32), DATASET) == 9
    assert optimizer_steps(Training(epochs=0.5), DATASET) == 3
    assert optimizer_steps(Training(max_steps=7), DATASET) == 7
