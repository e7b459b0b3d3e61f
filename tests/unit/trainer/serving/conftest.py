"""The gate's program, an engine to ask, and an evaluation's entry in a store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.trainer.serving.engine import Engine, started

from finetune_trainer.contract import held_out, served_rows
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.pod import ENV_MOUNTS, ENV_TERMINATION_LOG
from finetune_trainer.contract.reports import Failure, Scores, StepResult, Termination
from finetune_trainer.contract.served_rows import AskedRow
from finetune_trainer.serving import ask
from finetune_trainer.store.entries import Provenance, open_store


@pytest.fixture
def engine() -> Iterator[Engine]:
    with started() as server:
        yield server


@pytest.fixture
def gate(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the program with these prompts; returns its exit status and what it reported."""
    monkeypatch.setenv(ENV_TERMINATION_LOG, str(tmp_path / "termination"))

    def run(prompts: list[dict[str, str]], *options: str, model: str = "facts", url: str = "") -> tuple[int, Failure]:
        (tmp_path / "prompts.json").write_text(json.dumps(prompts))
        arguments = ["--url", url or engine.url, "--model", model, "--prompts", str(tmp_path / "prompts.json")]
        status = ask.main([*arguments, *options])
        failure = Termination.model_validate_json((tmp_path / "termination").read_text()).failure
        return status, failure or Failure(reason="", message="")

    return run


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Commit rows as evaluation does, in a store on a claim."""
    monkeypatch.setenv(ENV_MOUNTS, str(tmp_path / "mounts"))

    def commit(rows: list[AskedRow], text: str | None = None, references: dict[str, str] | None = None) -> None:
        folder = tmp_path / "evaluated"
        folder.mkdir()
        told = [{"prompt": prompt, "reference": reference, "answer": "?"} for prompt, reference in (references or {}).items()]
        (folder / held_out.FILE).write_text("".join(json.dumps(row) + "\n" for row in told) or "{}\n")
        lines = "".join(row.model_dump_json(by_alias=True) + "\n" for row in rows)
        (folder / served_rows.FILE).write_text(lines if text is None else text)
        store = open_store(StoreConfig(uri="pvc://store/job"), str(tmp_path / "mounts"))
        scores = (Scores(subject="merged", samples=4, values={}),)
        result = StepResult(step="evaluate", fingerprint="e" * 20, scores=scores)
        store.commit("evaluate", "1-a", folder, result, Provenance("evaluate", {}, {}))

    return commit
