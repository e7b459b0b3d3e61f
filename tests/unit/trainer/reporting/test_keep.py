"""The page that steps keep in the store: once there is a training, with all that has ended, and never at a step's cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.unit.trainer.reporting.conftest import commit

from finetune_trainer.context import Context
from finetune_trainer.contract.pipeline import EVALUATE, MERGE, PREPARE, TRAIN, steps
from finetune_trainer.contract.reports import ArtifactFacts, Scores, StepResult, TrainFacts
from finetune_trainer.environment import Pod, read
from finetune_trainer.inputs import Inputs
from finetune_trainer.reporting import page
from finetune_trainer.reporting.keep import keep


def context(inputs: Inputs, step: str, tmp_path: Path) -> Context:
    (of_run,) = [s for s in steps(inputs.run) if s.name == step]
    pod: Pod = read({"FINETUNE_MOUNTS": inputs.mounts})
    return Context(inputs.run, of_run, inputs.store, tmp_path / "scratch", pod, "1-a", lambda _: None)


def result(inputs: Inputs, step: str) -> StepResult:
    return StepResult(step=step, fingerprint=inputs.fingerprint(step))


def train(inputs: Inputs, tmp_path: Path) -> None:
    facts = TrainFacts(steps=3, loss=0.5, tokens=99, seconds=60.0)
    trained = result(inputs, TRAIN).model_copy(update={"train": facts, "artifact": ArtifactFacts.made("adapter", "PEFT")})
    commit(inputs.store, tmp_path, TRAIN, trained, adapter=[{}])


def score(inputs: Inputs, subject: str, tmp_path: Path) -> None:
    scores = Scores(subject=subject, samples=1, values={"loss": 1.5})
    scored = StepResult(step=EVALUATE, fingerprint=inputs.fingerprint(f"evaluate/{subject}"), scores=(scores,))
    commit(inputs.store, tmp_path, EVALUATE, scored, rows=[{"prompt": "Who?", "reference": "Mira", "answer": "Mira"}])


def told(inputs: Inputs, reported: StepResult) -> dict[str, Any]:
    content = inputs.store.objects.read(reported.report or "")
    assert content is not None
    found: dict[str, Any] = json.loads(content.decode().partition('id="facts">')[2].partition("</script>")[0])
    return found


def test_there_is_no_page_before_there_is_a_training(prepared: tuple[Path, Inputs], tmp_path: Path) -> None:
    _, inputs = prepared
    assert keep(context(inputs, PREPARE, tmp_path), result(inputs, PREPARE)).report is None
    assert inputs.store.objects.children("report") == []


def test_the_page_follows_what_ends(prepared: tuple[Path, Inputs], tmp_path: Path) -> None:
    _, inputs = prepared
    train(inputs, tmp_path)
    first = keep(context(inputs, TRAIN, tmp_path), result(inputs, TRAIN))
    assert [line["step"] for line in told(inputs, first)["lineage"]] == ["prepare", "train"]
    score(inputs, "base", tmp_path)
    second = keep(context(inputs, EVALUATE, tmp_path), result(inputs, EVALUATE))
    assert second.report == first.report
    assert [scores["subject"] for scores in told(inputs, second)["scores"]] == ["base"]
    assert keep(context(inputs, MERGE, tmp_path), result(inputs, MERGE)).report is None


def test_who_is_overtaken_while_writing_writes_again(
    prepared: tuple[Path, Inputs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, inputs = prepared
    train(inputs, tmp_path)
    pages: list[str] = []

    def another_step_ends(facts: dict[str, Any]) -> str:
        if not pages:
            commit(inputs.store, tmp_path, MERGE, result(inputs, MERGE), merged=[{}])
        pages.append(str(facts["lineage"]))
        return str(page.TEMPLATE.read_text()).replace("@FACTS@", json.dumps(facts))

    monkeypatch.setattr(page, "render", another_step_ends)
    kept = keep(context(inputs, TRAIN, tmp_path), result(inputs, TRAIN))
    assert len(pages) == 2
    assert [line["step"] for line in told(inputs, kept)["lineage"]] == ["prepare", "train", "merge"]


@pytest.mark.parametrize("lost", ["data", "data/*/1-a/samples.jsonl"])
def test_a_page_that_cannot_be_written_costs_no_step(
    lost: str,
    prepared: tuple[Path, Inputs],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, inputs = prepared
    train(inputs, tmp_path)
    at, trained = context(inputs, TRAIN, tmp_path), result(inputs, TRAIN)
    for path in (Path(inputs.mounts) / "claims/tiny-artifacts/tiny").glob(lost):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    assert keep(at, trained) == trained
    assert "the report is not kept: " in capsys.readouterr().err
