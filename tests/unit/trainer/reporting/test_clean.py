"""The step that removes what earlier runs have made: it costs no run its success."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.trainer.reporting.conftest import FACTS, commit
from tests.unit.trainer.reporting.test_keep import context, train

from finetune_trainer.contract.pipeline import CLEAN, TRAIN, model_fingerprint
from finetune_trainer.contract.reports import StepResult
from finetune_trainer.inputs import Inputs
from finetune_trainer.stages import clean
from finetune_trainer.store import runs
from finetune_trainer.store.runs import KnownRun

Prepared = tuple[Path, Inputs]


@pytest.fixture
def inputs(prepared: Prepared) -> Inputs:
    """Those of a run that keeps only itself, after one that has passed."""
    made = replace(prepared[1], run=prepared[1].run.model_copy(update={"keep_runs": 1}))
    objects, wanted = made.store.objects, made.fingerprints()
    runs.note(objects, runs.place(made.run, wanted), runs.known(made.run, wanted, 2.0))
    earlier = KnownRun(namespace=made.run.namespace, name=made.run.name, begun=1.0, entries=("merge/old",))
    runs.note(objects, "run/default/tiny/old", earlier)
    objects.overwrite("merge/old/1-a/model", b"0123456789")
    return made


def cleaned(inputs: Inputs, tmp_path: Path, in_use: frozenset[str] | None = frozenset()) -> StepResult:
    at = context(inputs, CLEAN, tmp_path)
    return clean.run(replace(at, pod=replace(at.pod, in_use=in_use)))


def test_what_earlier_runs_have_made_is_removed_and_told(inputs: Inputs, tmp_path: Path) -> None:
    told = cleaned(inputs, tmp_path).cleaned
    assert told is not None
    assert (told.runs, told.entries, told.bytes, told.message) == (1, 1, 10, "")
    assert inputs.store.objects.children("merge") == []
    place = runs.place(inputs.run, inputs.fingerprints())
    assert runs.read(inputs.store.objects)[place].passed


def test_what_serves_stays(inputs: Inputs, tmp_path: Path) -> None:
    told = cleaned(inputs, tmp_path, frozenset({"old"})).cleaned
    assert told is not None
    assert told.entries == 0
    assert inputs.store.objects.children("merge") == ["old"]


def test_nothing_is_removed_where_nobody_told_what_is_in_use(inputs: Inputs, tmp_path: Path) -> None:
    told = cleaned(inputs, tmp_path, None).cleaned
    assert told is not None
    assert told.message == clean.UNKNOWN
    assert inputs.store.objects.children("merge") == ["old"]


def test_checkpoints_that_a_killed_training_left_behind_its_commit_go(inputs: Inputs, tmp_path: Path) -> None:
    objects, fingerprint = inputs.store.objects, inputs.fingerprint(TRAIN)
    objects.overwrite(f"checkpoint/{fingerprint}/40/1-a/state", b"s")
    cleaned(inputs, tmp_path)
    assert objects.children(f"checkpoint/{fingerprint}") == ["40"], "it is not done: the next attempt goes on from there"
    train(inputs, tmp_path)
    cleaned(inputs, tmp_path)
    assert objects.children(f"checkpoint/{fingerprint}") == []


def test_what_can_not_be_removed_is_told_and_fails_no_run(inputs: Inputs, tmp_path: Path) -> None:
    inputs.store.objects.overwrite("run/default/tiny/old/run.json", b"{")
    told = cleaned(inputs, tmp_path).cleaned
    assert told is not None
    assert "can't be read" in told.message


def test_the_facts_that_it_needs_are_prepares(inputs: Inputs, tmp_path: Path) -> None:
    """A base model that a run needs is nobody's to remove."""
    commit(inputs.store, tmp_path / "again", "model", StepResult(step="prepare", fingerprint="f", model=FACTS), config=[{}])
    cleaned(inputs, tmp_path)
    assert set(inputs.store.objects.children("model")) == {"f", model_fingerprint(inputs.run.model)}
