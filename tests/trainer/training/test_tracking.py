"""Curves for TensorBoard lie beside the adapter; a tracker that can't work is refused before the first step."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.entries import prepare
from tests.trainer.training.test_train import LORA, MakeRun, committed, trained

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pod import ENV_MOUNTS, Owner, secret_folder
from finetune_trainer.failures import StepFailed
from finetune_trainer.training import tracking

SECRET = {"reportSecretRef": {"name": "curves"}}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # what a run sets in its own process ends with the test


def test_tensorboard_has_the_loss_of_each_step(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(training=LORA | {"maxSteps": 3, "reportTo": ["tensorboard"]})
    prepare(run, tmp_path)
    _, losses = trained(run, tmp_path)
    (file,) = (committed(run, tmp_path) / "tensorboard").iterdir()
    assert scalars(file, "train/loss") == pytest.approx(losses.by_step, rel=1e-6)


def scalars(file: Path, tag: str) -> dict[int, float]:
    """Value by step of one curve in a file of TensorBoard's records: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[int, float] = {}
    content, at = file.read_bytes(), 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        event = Event.FromString(content[at + 12 : at + 12 + size])
        for value in event.summary.value:
            if value.tag == tag:
                found[event.step] = value.simple_value
        at += size + 16
    return found


def test_a_package_that_the_image_lacks_is_named(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StepFailed, match=r"reportTo: this image has no mlflow; set spec\.stages\.train\.image") as refused:
        tracking.arguments(make_run(training={"reportTo": ["mlflow"]} | SECRET), tmp_path)
    assert refused.value.exit_code is ExitCode.BAD_CONFIG


def test_a_key_that_the_secret_lacks_is_named(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = object()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: found)
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.delenv("WANDB_API_KEY")
    run = make_run(training={"reportTo": ["wandb"]} | SECRET)
    with pytest.raises(StepFailed, match=r"wandb needs WANDB_API_KEY; put it into the Secret"):
        tracking.arguments(run, tmp_path)
    monkeypatch.setenv(ENV_MOUNTS, str(tmp_path))
    monkeypatch.setenv("HOME", "kept")
    folder = Path(secret_folder(str(tmp_path), Owner.REPORTS))
    folder.mkdir(parents=True)
    (folder / "WANDB_API_KEY").write_text("key")
    (folder / "HOME").write_text("not for a Secret to say")
    assert tracking.arguments(run, tmp_path) == {"report_to": ["wandb"], "run_name": "team/job"}
    assert (os.environ["WANDB_API_KEY"], os.environ["HOME"]) == ("key", "kept")


def test_what_is_reported_changes_no_fingerprint(make_run: MakeRun, tmp_path: Path) -> None:
    plain = make_run(training=LORA)
    prepare(plain, tmp_path)
    result, _ = trained(plain, tmp_path)
    again, losses = trained(make_run(training=LORA | {"reportTo": ["tensorboard"]}), tmp_path)
    assert again == result
    assert losses.by_step == {}
