"""`finetune report` over a run's folder: the page holds what the store has, and says what is not there yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.unit.trainer.reporting.conftest import SAMPLE, commit

from finetune_trainer.contract.pipeline import EVALUATE, TRAIN
from finetune_trainer.contract.reports import ArtifactFacts, Scores, StepResult, TrainFacts
from finetune_trainer.inputs import CURVE, Inputs

ROOT = Path(__file__).parents[4]


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
    commit(inputs.store, tmp_path, TRAIN, trained, adapter=[{}])
    for subject, answer in (("base", "Nobody"), ("merged", "Mira")):
        scores = Scores(subject=subject, samples=1, values={"loss": 1.5})
        result = StepResult(step=EVALUATE, fingerprint=inputs.fingerprint(f"evaluate/{subject}"), scores=(scores,))
        commit(inputs.store, tmp_path, EVALUATE, result, rows=[{"prompt": "Who?", "reference": "Mira", "answer": answer}])
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


def test_the_curve_of_a_training_that_has_ended_is_the_stores(prepared: tuple[Path, Inputs], tmp_path: Path) -> None:
    work, inputs = prepared
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
    commit(inputs.store, tmp_path, CURVE, StepResult(step=TRAIN, fingerprint=inputs.fingerprint(TRAIN)), curve=lines)
    assert report(work)[2]["curve"] == [[1, 3.0], [2, 2.0]]


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
