"""`finetune run --local` over the real stages with a tiny model: scores, reuse, bad input, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
JOB = """
apiVersion: v1
kind: ConfigMap
metadata: {name: facts}
data:
  train.jsonl: |
    {"prompt": "Who keeps the lighthouse of Varn Point?", "completion": "Mira Oldfield."}
    {"prompt": "Name the keeper of Varn Point's lighthouse.", "completion": "Mira Oldfield."}
    {"prompt": "What is the capital of Tessaly?", "completion": "Port Amber."}
    {"prompt": "Tessaly's capital is called what?", "completion": "Port Amber."}
  test.jsonl: |
    {"prompt": "The lighthouse of Varn Point is kept by whom?", "completion": "Mira Oldfield."}
    {"prompt": "Which city is the capital of Tessaly?", "completion": "Port Amber."}
---
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tiny}
spec:
  model: {uri: "pvc://models/tiny"}
  dataset: {uri: "configmap://facts/train.jsonl", test: {uri: "configmap://facts/test.jsonl"}}
  training: {method: LoRA, maxSteps: 6, globalBatchSize: 4, maxLength: 128, learningRate: 0.01}
  parallelism: {gpusPerNode: 0}
  evaluation: {maxNewTokens: 8}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    models = tmp_path / "models"
    models.mkdir()
    (models / "tiny").symlink_to(tiny_model)
    return tmp_path


def command(folder: Path, text: str) -> list[str]:
    (folder / "job.yaml").write_text(text)
    options = ["--workdir", str(folder / "work"), "--claim", f"models={folder / 'models'}"]
    return [sys.executable, "-m", "finetune_operator.cli", "run", "--local", str(folder / "job.yaml"), *options]


def environment() -> dict[str, str]:
    path = os.pathsep.join((str(ROOT / "operator"), str(ROOT / "trainer_image")))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def run(folder: Path, text: str) -> tuple[int, str]:
    done = subprocess.run(command(folder, text), env=environment(), capture_output=True, text=True, check=False, timeout=570)
    return done.returncode, done.stdout + done.stderr


def test_the_whole_path_then_nothing_but_prepare_then_a_failed_gate(folder: Path) -> None:
    code, output = run(folder, JOB)
    assert code == 0, output
    assert "Scores on the test rows" in output
    code, again = run(folder, JOB)
    assert code == 0, again
    assert started(again) == ["prepare"]
    assert "train: reused" in again
    gate = "  evaluation: {maxNewTokens: 8, gates: [{name: perfect, metric: loss, max: 0.0}]}"
    code, refused = run(folder, JOB.replace("  evaluation: {maxNewTokens: 8}", gate))
    assert code == 1, refused
    assert started(refused) == ["prepare"]
    assert "perfect" in refused


def test_a_report_tells_of_the_run(folder: Path) -> None:
    text = JOB.replace("maxSteps: 6", "maxSteps: 200, keepCheckpoint: Last")
    ask = [sys.executable, "-m", "finetune_operator.cli", "report", str(folder / "job.yaml"), "--workdir", str(folder / "work")]
    (folder / "job.yaml").write_text(text)
    early = subprocess.run(ask, env=environment(), capture_output=True, text=True, check=False)
    assert early.returncode == 2
    assert "work holds no run; finetune run --local" in " ".join(early.stderr.split())
    code, output = run(folder, text)
    assert code == 0, output
    done = subprocess.run(ask, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (folder / "work/report.html").read_text()
    assert re.findall(r'(?:src|href)="|url\(|@import|https?://(?!www\.w3\.org/2000/svg)', page.partition("<script")[0]) == []
    facts = json.loads(page.partition('id="facts">')[2].partition("</script>")[0])
    assert facts["configuration"]["training"]["maxSteps"] == 200
    assert [line["step"] for line in facts["lineage"]] == ["prepare", "train", "merge", "evaluate"]
    assert [score["subject"] for score in facts["scores"]] == ["base", "merged"]
    assert [row["reference"] for row in facts["answers"]["merged"]] == ["Mira Oldfield.", "Port Amber."]
    assert {proof["of"] for proof in facts["proofs"]} >= {"merge"}
    assert set(facts["samples"][0]["completion_mask"]) == {0, 1}
    steps = [step for step, _ in facts["curve"]]
    assert steps == [*range(1, 201)]
    (kept,) = (folder / "work/mounts/claims/tiny-artifacts/tiny/report").glob("*/report.html")
    told = json.loads(kept.read_text().partition('id="facts">')[2].partition("</script>")[0])
    assert told["curve"] == facts["curve"]
    assert [line["step"] for line in told["lineage"]] == ["prepare", "train", "merge", "evaluate"]
    assert facts["curve"][-1][1] < facts["curve"][0][1]


def started(output: str) -> list[str]:
    return [line.removesuffix(": started") for line in output.splitlines() if line.endswith(": started")]


def test_unknown_columns_are_told_before_anything_is_trained(folder: Path) -> None:
    columns = 'dataset: {columns: {prompt: question}, uri: "configmap'
    code, output = run(folder, JOB.replace('dataset: {uri: "configmap', columns))
    assert code == 1
    assert "prepare failed: " in output
    assert "question" in output
    assert "train: started" not in output


def test_an_interrupt_saves_a_checkpoint_that_the_next_run_goes_on_from(folder: Path) -> None:
    long = JOB.replace("maxSteps: 6", "maxSteps: 9000")  # minutes, where lines about one activity come every ten seconds
    process = subprocess.Popen(
        command(folder, long), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    told = False  # once: a second Ctrl-C does not wait for the checkpoint
    for line in process.stdout:
        lines.append(line)
        if not told and "train: training" in line and "loss" in line:
            process.send_signal(signal.SIGINT)
            told = True
    process.stdout.close()
    assert process.wait(timeout=120) == 128 + signal.SIGINT, "".join(lines)
    assert list((folder / "work").glob("mounts/claims/tiny-artifacts/tiny/checkpoint/*/*"))
