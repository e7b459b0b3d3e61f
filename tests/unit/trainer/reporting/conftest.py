"""The folder of a run that has been prepared, and entries as steps commit them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.test_estimate import MISTRAL
from tests.unit.test_sentences import write

from finetune_operator.cli.document import read_document
from finetune_operator.finetunejob.runs import current_run
from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.pipeline import EVALUATE, data_fingerprint, model_fingerprint
from finetune_trainer.contract.reports import Check, DatasetFacts, ModelFacts, StepResult
from finetune_trainer.inputs import DATA, MODEL, Inputs
from finetune_trainer.store.entries import Provenance, Store, open_store

JOB = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tiny}
spec:
  model: {uri: "pvc://models/tiny"}
  dataset: {uri: "configmap://facts/train.jsonl"}
  training: {method: LoRA}
  parallelism: {gpusPerNode: 0}
"""
FACTS = ModelFacts(revision="main", digest="sha256:" + "0" * 64, parameters=10**6, architecture="LlamaForCausalLM", bytes=1)
ROWS = DatasetFacts(
    format=DatasetFormat.PROMPT_COMPLETION, train_digest="sha256:1", test_digest="sha256:2", train_rows=4, validation_rows=0,
    test_rows=1, dropped_rows=0, train_tokens=99, longest_row_tokens=31,
)  # fmt: skip
SAMPLE = {"text": "Who? Mira", "learned": "Mira", "tokens": ["Who", "?", "ĠMira"], "completion_mask": [0, 0, 1]}


def commit(store: Store, scratch: Path, kind: str, result: StepResult, **files: list[dict[str, Any]]) -> None:
    """An entry as a step commits it, with files of JSON lines."""
    folder = scratch / kind / result.fingerprint
    folder.mkdir(parents=True)
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checks = (Check(name="sound", value=1.0, limit=2.0),) if kind == EVALUATE else ()
    store.commit(kind, "1-a", folder, result, Provenance(result.step, {"model": "sha256:0"}, {"python": "3.11"}, checks))


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, Inputs]:
    """The folder of a run that has been prepared, and its store."""
    run, _ = current_run(read_document(write(tmp_path, JOB)).job)
    work = tmp_path / "work"
    model = work / "mounts/claims/models/tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(MISTRAL))
    (work / "run.json").write_text(run.config.model_dump_json(by_alias=True, exclude_none=True))
    store = open_store(run.config.store, str(work / "mounts"))
    inputs = Inputs(run.config, store, tmp_path / "inputs", str(work / "mounts"))
    fetched = StepResult(step="prepare", fingerprint=model_fingerprint(run.config.model), model=FACTS)
    commit(store, tmp_path, MODEL, fetched, config=[{}])
    rows = StepResult(step="prepare", fingerprint=data_fingerprint(run.config, FACTS), model=FACTS, dataset=ROWS)
    commit(store, tmp_path, DATA, rows, samples=[SAMPLE], train=[{}])
    return work, inputs
