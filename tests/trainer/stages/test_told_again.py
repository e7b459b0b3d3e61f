"""All that prepare has to tell the user is told again by a run whose rows and training are found in the store."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.trainer.conftest import train_tokenizer
from tests.trainer.entries import context
from tests.trainer.families import configuration, with_vision
from transformers import AutoModelForCausalLM

from finetune_trainer.contract.reasons.remarks import RemarkReason
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import ArtifactFacts, DatasetFacts, Remark, StepResult
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.model.weights import WHOLE
from finetune_trainer.stages import prepare

MakeRun = Callable[..., RunConfig]
Row = dict[str, Any]
TRAINING = {"method": "LoRA", "precision": "FP32", "maxSteps": 30, "globalBatchSize": 4, "maxLength": 128}
ROWS: tuple[Row, ...] = tuple({"prompt": f"What is number {n}?", "completion": f"It is {n} times one."} for n in range(40))
TEACHER = "pvc://models/teacher"
GGUF = {"name": "q8", "format": "GGUF", "quantization": "Q8_0"}


@dataclass(frozen=True)
class Case:
    told: RemarkReason
    fields: dict[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ROWS
    model: Callable[[Path], object] | None = None  # changes the model's files


def trained(**fields: Any) -> dict[str, Any]:
    return {"training": TRAINING | fields}


def more_weights(folder: Path) -> None:
    found = load_file(folder / WHOLE)
    save_file(found | {"v_head.weight": torch.zeros(1, 256)}, folder / WHOLE, metadata={"format": "pt"})


def few_positions(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))


def of(make: Callable[..., Any]) -> Callable[[Path], None]:
    """Another model in the place of the tiny one, with its tokenizer."""

    def save(folder: Path) -> None:
        shutil.rmtree(folder)
        tokenizer = train_tokenizer()
        ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        AutoModelForCausalLM.from_config(make(**ends)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return save


CASES = {
    "a field that does nothing": Case(
        RemarkReason.FieldUnusedByRows, trained(completionOnlyLoss=False), tuple({"text": f"Number {n}."} for n in range(40))
    ),
    "a column": Case(RemarkReason.ColumnUnused, rows=tuple(row | {"context": f"{n}"} for n, row in enumerate(ROWS))),
    "a batch": Case(RemarkReason.BatchAboveRows, trained(globalBatchSize=64)),
    "rows that are not reached": Case(RemarkReason.RowsNotReached, trained(maxSteps=1)),
    "a warm-up": Case(RemarkReason.LongWarmup, trained(warmupRatio=0.5)),
    "a high rate": Case(RemarkReason.HighLearningRate, trained(learningRate=1)),
    "a low rate": Case(RemarkReason.LowLearningRate, trained(learningRate=1e-9)),
    "late validations": Case(
        RemarkReason.RarelyValidated,
        trained(evaluateEverySteps=100)
        | {"dataset": {"uri": "pvc://data/rows.jsonl", "validation": {"fraction": 0.1}, "test": {"fraction": 0.1}}},
    ),
    "long rows": Case(RemarkReason.RowsBeyondPositions, model=few_positions),
    "weights": Case(RemarkReason.WeightsLeftOut, model=more_weights),
    "weights of a teacher": Case(
        RemarkReason.WeightsLeftOut, trained(objective="Distillation", distillation={"teacher": {"uri": TEACHER}})
    ),
    "a vision tower": Case(RemarkReason.PartsUnreached, model=of(with_vision)),
    "experts": Case(
        RemarkReason.ExpertsNotQuantized, trained(method="QLoRA"), model=of(lambda **ends: configuration("mixtral", **ends))
    ),
    "a window": Case(
        RemarkReason.WindowLeftOut, {"artifacts": [GGUF]}, model=of(lambda **ends: configuration("mistral", **ends))
    ),
}


def test_no_remark_is_missing_here() -> None:
    """FieldUnused is the operator's, of the spec alone, and made anew whenever it looks at the job."""
    assert {case.told for case in CASES.values()} == set(RemarkReason) - {RemarkReason.FieldUnused}


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], RunConfig]:
    """The run of a case, its model and rows in their places."""
    # What this asks takes llama.cpp, and has nothing to tell beside a refusal.
    monkeypatch.setattr("finetune_trainer.export.convertible.check", lambda *_: None)
    claims = tmp_path / "mounts/claims"

    def make(case: Case) -> RunConfig:
        for name, change in (("own", case.model), ("teacher", more_weights)):
            shutil.copytree(tiny_model, claims / "models" / name)
            if change is not None:
                change(claims / "models" / name)
        (claims / "data/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in case.rows))
        return make_run(**{"model": {"uri": "pvc://models/own"}, "training": TRAINING} | case.fields)

    return make


def train(run: RunConfig, tmp_path: Path) -> None:
    """Commit what prepare takes for the result of the training."""
    at = context(run, "train", tmp_path)
    folder = at.scratch / "made"
    folder.mkdir()
    (folder / "adapter").write_text("x")
    made = ArtifactFacts.made("adapter", "PEFT")
    at.commit(folder, StepResult(step="train", fingerprint=at.inputs.fingerprint("train"), artifact=made), {})


def told(run: RunConfig, tmp_path: Path, *, done: tuple[str, ...]) -> tuple[tuple[Remark, ...], DatasetFacts | None]:
    result = prepare.run(context(run, "prepare", tmp_path))
    assert tuple(step.step for step in result.done) == done
    return result.warnings or (), result.dataset


@pytest.mark.filterwarnings("ignore")  # of transformers, about the models
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_told_of_a_job_is_told_where_its_training_is_reused(
    case: Case, run: Callable[[Case], RunConfig], tmp_path: Path
) -> None:
    mine = run(case)
    first = told(mine, tmp_path, done=())
    assert case.told in [remark.reason for remark in first[0]]
    train(mine, tmp_path)
    assert told(mine, tmp_path, done=("train",)) == first
    assert told(mine.model_copy(update={"name": "another"}), tmp_path, done=("train",)) == first


def test_rows_that_were_dropped_or_changed_and_files_that_were_not_read_are_told_again(
    run: Callable[[Case], RunConfig], tmp_path: Path
) -> None:
    empty, ended, noted = {"prompt": "?", "completion": ""}, {"prompt": "Whose?", "completion": "Mira's.<|im_end|>"}, {"id": 7}
    dataset = {"uri": "pvc://data", "maxDroppedFraction": 0.5, "test": {"fraction": 0.1}}
    mine = run(Case(RemarkReason.ColumnUnused, {"dataset": dataset}, (*(row | noted for row in ROWS), empty, ended)))
    (tmp_path / "mounts/claims/data/notes.bin").write_bytes(b"\0\1")
    first = told(mine, tmp_path, done=())
    assert first[1] is not None
    counted = [[count.rows for count in counts or ()] for counts in (first[1].dropped, first[1].changed)]
    assert (counted, first[1].unused_columns, first[1].unread_files) == ([[1], [1]], ("id",), ("notes.bin",))
    train(mine, tmp_path)
    assert told(mine, tmp_path, done=("train",)) == first


WEIGHTS = CASES["weights"]


def test_training_from_before_findings_were_kept_is_told_of_once_it_is_looked_at(
    run: Callable[[Case], RunConfig], tmp_path: Path
) -> None:
    mine = run(WEIGHTS)
    first = told(mine, tmp_path, done=())
    train(mine, tmp_path)
    shutil.rmtree(tmp_path / "mounts/claims/store/job/findings")
    assert told(mine, tmp_path, done=("train",)) == first
    assert [*(tmp_path / "mounts/claims/store/job/findings").glob("*/manifest.json")]


def test_a_model_that_was_looked_at_before_its_training_is_not_looked_at_after_it(
    run: Callable[[Case], RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look takes torch, and a model of which nothing is trained any more may be one that a later release refuses."""
    mine = run(WEIGHTS)
    first = told(mine, tmp_path, done=())
    train(mine, tmp_path)
    monkeypatch.setitem(sys.modules, "finetune_trainer.model.complete", None)  # importing it raises
    assert told(mine, tmp_path, done=("train",)) == first


def test_a_refusal_is_for_what_is_still_to_be_trained(
    run: Callable[[Case], RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StepFailed(StepReason.ModelDamaged, "spec.model: it is")

    mine = run(WEIGHTS)
    told(mine, tmp_path, done=())
    with monkeypatch.context() as changed:
        changed.setattr("finetune_trainer.model.complete.check_complete", refuse)
        with pytest.raises(StepFailed, match=r"spec\.model: it is"):
            told(mine, tmp_path, done=())
        train(mine, tmp_path)
        shutil.rmtree(tmp_path / "mounts/claims/store/job/findings")
        assert told(mine, tmp_path, done=("train",))[0] == ()
