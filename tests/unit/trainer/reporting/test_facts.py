"""`finetune report` over a run's folder: the page holds what the store has, and says what is not there yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.test_estimate import MISTRAL
from tests.unit.test_sentences import write

from finetune_operator.cli.document import read_document
from finetune_operator.finetunejob.runs import current_run
from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.pipeline import EVALUATE, TRAIN, data_fingerprint, model_fingerprint
from finetune_trainer.contract.reports import ArtifactFacts, Check, DatasetFacts, ModelFacts, Scores, StepResult, TrainFacts
from finetune_trainer.inputs import DATA, MODEL, Inputs
from finetune_trainer.store.entries import Provenance, Store, open_store

ROOT = Path(__file__).parents[4]
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


def keep(store: Store, scratch: Path, kind: str, result: StepResult, **files: list[dict[str, Any]]) -> None:
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
    keep(store, tmp_path, MODEL, fetched, config=[{}])
    rows = StepResult(step="prepare", fingerprint=data_fingerprint(run.config, FACTS), model=FACTS, dataset=ROWS)
    keep(store, tmp_path, DATA, rows, samples=[SAMPLE], train=[{}])
    return work, inputs


def report(work: Path) -> tuple[int, str, dict[str, Any]]:
    path = os.pathsep.join((str(ROOT / "operator"), str(ROOT / "trainer_image")))
    command = [sys.executable, "-m", "finetune_operator.cli", "report", str(work.parent / "job.yaml"), "--workdir", str(work)]
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    page = work / "report.html"
    text = page.read_text() if page.is_file() else ""
    return done.returncode, done.stderr, json.loads(text.partition('id="facts">')[2].partition("</script>")[0] or "{}")


def test_a_run_that_has_only_been_prepared(prepared: tuple[Path, Inputs]) -> None:
    code, said, facts = report(prepared[0])
    assert (code, said) == (0, "")
    assert facts["samples"] == [SAMPLE]
    assert facts["prepared"]["dataset"]["trainRows"] == 4
    assert [line["step"] for line in facts["lineage"]] == ["prepare"]
    assert (facts["scores"], facts["curve"], facts["training"]) == ([], [], None)


def test_a_run_that_was_trained_and_scored(prepared: tuple[Path, Inputs], tmp_path: Path) -> None:
    work, inputs = prepared
    trained = StepResult(
        step=TRAIN,
        fingerprint=inputs.fingerprint(TRAIN),
        train=TrainFacts(steps=3, loss=0.5, tokens=99, seconds=60.0),
        artifact=ArtifactFacts.made("adapter", "PEFT"),
    )
    keep(inputs.store, tmp_path, TRAIN, trained, adapter=[{}])
    for subject, answer in (("base", "Nobody"), ("merged", "Mira")):
        scores = Scores(subject=subject, samples=1, values={"loss": 1.5})
        result = StepResult(step=EVALUATE, fingerprint=inputs.fingerprint(f"evaluate/{subject}"), scores=(scores,))
        keep(inputs.store, tmp_path, EVALUATE, result, rows=[{"prompt": "Who?", "reference": "Mira", "answer": answer}])
    losses = ((1, 3.0), (2, 9.0), (2, 2.0), (3, 1.0))
    told = [{"step_name": "train", "step": step, "total": 3, "loss": loss} for step, loss in losses]
    (work / "logs").mkdir()
    (work / "logs/train.progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    code, said, facts = report(work)
    assert (code, said) == (0, "")
    assert facts["curve"] == [[1, 3.0], [2, 2.0], [3, 1.0]], "a step that was told of twice counts as it was told last"
    assert [line["artifact"] and line["artifact"]["name"] for line in facts["lineage"]] == [None, "adapter"]
    assert facts["training"]["loss"] == 0.5
    assert {name: rows[0]["answer"] for name, rows in facts["answers"].items()} == {"base": "Nobody", "merged": "Mira"}
    assert [score["subject"] for score in facts["scores"]] == ["base", "merged"]
    assert {proof["of"] for proof in facts["proofs"]} == {"evaluate/base", "evaluate/merged"}


def test_without_a_run_there_is_a_sentence(prepared: tuple[Path, Inputs]) -> None:
    work, _ = prepared
    (work / "run.json").unlink()
    code, said, _ = report(work)
    assert code == 2
    assert "work holds no run; finetune run --local" in " ".join(said.split())


def test_a_store_without_its_rows_is_a_sentence(prepared: tuple[Path, Inputs]) -> None:
    work, inputs = prepared
    inputs.store.objects.delete("data")
    code, said, _ = report(work)
    assert code == 1
    assert said.startswith("no report yet: ")
    assert "is not in the artifact store" in said
