"""Publishing to a hub: through the stock client, into a hub of our own, private, proven, and never twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from localcluster import hub as local_hub
from tests.trainer.entries import context, prepare
from tests.writable_hub import WritableHub, writable_hub

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import ArtifactFacts, StepResult
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.stages import publish
from finetune_trainer.store.files import describe, files_json

# huggingface_hub passes files as `data`, which its HTTP client would rather have as `content`.
pytestmark = [pytest.mark.usefixtures("hub"), pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")]

MakeRun = Callable[..., RunConfig]
WEIGHTS = "model.safetensors"
LARGE = "weights" * 1000


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[WritableHub]]:
    """A hub that takes files of more than 1 000 bytes by Git LFS, and a token that may write to it."""
    monkeypatch.setattr(local_hub, "LFS_BYTES", 1000)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    (tmp_path / "hub").mkdir()
    with writable_hub(tmp_path / "hub") as (address, handler):
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield handler


def made(make_run: MakeRun, tmp_path: Path, seed: int = 1, weights: str = LARGE, **target: Any) -> RunConfig:
    """A run whose adapter and merged model are a few files."""
    targets = [{"uri": "hf://org/tuned", "secretRef": {"name": "hub"}} | target]
    training = {"method": "LoRA", "precision": "FP32", "maxSteps": 1, "maxLength": 128, "seed": seed}
    run = make_run(publish=targets, training=training)
    prepare(run, tmp_path)
    for step, artifact in (("train", "adapter"), ("merge", "merged")):
        at = context(run, step, tmp_path)
        folder = at.scratch / "model"
        (folder / "nested").mkdir(parents=True)
        (folder / WEIGHTS).write_text(f"{artifact} {weights}")
        (folder / "nested" / f"{seed}.json").write_text("{}")
        (folder / "README.md").write_text(f"---\ntags: [{artifact}]\n---\n# {seed}\n")
        facts = ArtifactFacts(name=artifact, format="Safetensors", path="", digest="", bytes=0)
        at.commit(folder, StepResult(step=step, fingerprint=at.inputs.fingerprint(step), artifact=facts), {})
    return run


def published(run: RunConfig, tmp_path: Path) -> StepResult:
    return publish.run(context(run, "publish-0", tmp_path))


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")}


def test_one_artifact_lies_at_the_root_of_a_private_repository(make_run: MakeRun, tmp_path: Path) -> None:
    run = made(make_run, tmp_path)
    assert published(run, tmp_path).published == ("hf://org/tuned",)
    folder = tmp_path / "hub/org/tuned"
    assert names(folder) == {"files.json", "README.md", WEIGHTS, "nested/1.json"}
    assert (folder / WEIGHTS).read_text() == f"merged {LARGE}"
    assert (folder / local_hub.PRIVATE).exists()
    at = context(run, "publish-0", tmp_path)
    assert (folder / "files.json").read_bytes() == files_json(describe(at.inputs.output("merge")[1]))
    manifest = at.store.read("publish", at.inputs.fingerprint("publish-0"))
    assert manifest is not None
    assert manifest.inputs["commit"] == local_hub.Repository("", folder).commit


def test_several_artifacts_lie_in_folders_on_a_branch(make_run: MakeRun, tmp_path: Path) -> None:
    run = made(make_run, tmp_path, uri="hf://org/tuned@v1", artifacts=["adapter", "merged"], private=False)
    assert published(run, tmp_path).published == ("hf://org/tuned/adapter@v1", "hf://org/tuned/merged@v1")
    assert names(tmp_path / "hub/org/tuned") == set()
    folder = tmp_path / "hub/org/tuned@v1"
    assert not (folder / local_hub.PRIVATE).exists()
    below = {"files.json", "README.md", WEIGHTS, "nested/1.json"}
    assert names(folder) == {f"{artifact}/{name}" for artifact in ("adapter", "merged") for name in below}


def test_nothing_is_uploaded_twice_and_only_ours_is_replaced(make_run: MakeRun, tmp_path: Path, hub: type[WritableHub]) -> None:
    published(made(make_run, tmp_path, seed=1), tmp_path)
    folder = tmp_path / "hub/org/tuned"
    (folder / "LICENSE").write_text("theirs")
    hub.uploads.clear()
    again = made(make_run, tmp_path, seed=1)
    at = context(again, "publish-0", tmp_path)
    at.store.objects.delete(f"publish/{at.inputs.fingerprint('publish-0')}")
    assert published(again, tmp_path).published == ("hf://org/tuned",)
    assert hub.uploads == []

    published(made(make_run, tmp_path, seed=2), tmp_path)
    assert sorted(hub.uploads) == ["README.md", "files.json", "nested/2.json"]  # the weights are the same
    assert names(folder) == {"files.json", "README.md", WEIGHTS, "nested/2.json", "LICENSE"}


@pytest.mark.parametrize("name", [WEIGHTS, "README.md"])
def test_a_damaged_copy_is_no_publication(make_run: MakeRun, tmp_path: Path, hub: type[WritableHub], name: str) -> None:
    hub.damaged = name
    with pytest.raises(StepFailed, match=rf"org/tuned: {name} has another digest on the hub") as failed:
        published(made(make_run, tmp_path), tmp_path)
    assert (failed.value.exit_code, failed.value.reason) == (ExitCode.STORE_UNAVAILABLE, "PublishDamaged")


def test_a_hub_that_is_busy_is_asked_again(make_run: MakeRun, tmp_path: Path, hub: type[WritableHub]) -> None:
    hub.failures = 2
    assert published(made(make_run, tmp_path), tmp_path).published
    assert sorted(hub.uploads) == ["README.md", "files.json", WEIGHTS, "nested/1.json"]


def test_what_a_hub_refuses(make_run: MakeRun, tmp_path: Path, hub: type[WritableHub], monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(make_run, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(StepFailed, match=r"spec\.publish\[0\]\.secretRef") as failed:
        published(run, tmp_path)
    assert (failed.value.exit_code, failed.value.reason) == (ExitCode.SOURCE_DENIED, "PublishDenied")

    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    (tmp_path / "hub/org/tuned").mkdir(parents=True)
    with pytest.raises(StepFailed, match=r"org/tuned is public; set spec\.publish\[0\]\.private to false") as failed:
        published(run, tmp_path)
    assert (failed.value.exit_code, failed.value.reason) == (ExitCode.BAD_CONFIG, "PublishRefused")
    assert hub.uploads == []

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StepFailed, match="the hub did not answer") as failed:
        published(run, tmp_path)
    assert failed.value.exit_code is ExitCode.SOURCE_UNAVAILABLE
