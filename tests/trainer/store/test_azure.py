"""az:// at a real server of Azure's blobs: as artifact store, as source, as a place to publish to and to serve from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.trainer.azure import CONTAINER, azurite

from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import ArtifactFacts, StepResult
from finetune_trainer.failures import StepFailed
from finetune_trainer.serving.load import load
from finetune_trainer.sources.fetch import fetch
from finetune_trainer.sources.source import Source
from finetune_trainer.stages import publish
from finetune_trainer.store.entries import Provenance, Store, open_store
from finetune_trainer.store.files import folder_digest

ROWS = ("*.jsonl",)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with azurite(tmp_path_factory.mktemp("azure")) as variables:
        yield variables


@pytest.fixture
def uri(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place in the container that nothing lies at yet."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return f"az://{CONTAINER}/{tmp_path.name}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "deep").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "deep" / "model.safetensors").write_bytes(b"weights" * 3_000_000)  # more than a part
    return made


def opened(uri: str) -> Store:
    return open_store(StoreConfig(uri=uri), "/nowhere")


def commit(uri: str, attempt: str, folder: Path) -> str:
    artifact = ArtifactFacts.made("merged", "Safetensors")
    result = StepResult(step="merge", fingerprint="f1", artifact=artifact)
    return opened(uri).commit("merge", attempt, folder, result, Provenance("merge", {}, {})).prefix


def test_of_several_that_commit_at_once_one_wins_and_the_others_leave_nothing(uri: str, model: Path, tmp_path: Path) -> None:
    (model / "deep" / "model.safetensors").write_bytes(b"weights")
    with ThreadPoolExecutor(8) as pool:
        winners = set(pool.map(lambda number: commit(uri, f"{number}-pod", model), range(8)))
    assert len(winners) == 1
    store = opened(uri)
    manifest = store.read("merge", "f1")
    assert manifest is not None
    assert {manifest.prefix} == winners == set(store.objects.children("merge/f1"))
    assert (store.fetch("merge", manifest, tmp_path / "read") / "deep" / "model.safetensors").read_bytes() == b"weights"


def test_checkpoints_come_and_go(uri: str, model: Path, tmp_path: Path) -> None:
    store = opened(uri)
    for step in (5, 10):
        store.commit_checkpoint("f1", step, "1-a", store.upload_checkpoint("f1", step, model, "1-a"))
    store.commit_checkpoint("f1", 10, "2-a", store.upload_checkpoint("f1", 10, model, "2-a"))
    assert store.checkpoints("f1") == [10, 5]
    loaded = store.load_checkpoint("f1", 10, tmp_path / "loaded")
    assert (loaded / "deep" / "model.safetensors").read_bytes() == (model / "deep" / "model.safetensors").read_bytes()
    store.drop_checkpoints("f1", keep=0)
    assert store.objects.sizes("checkpoint") == {}


def test_rows_and_models_are_read(uri: str, tmp_path: Path) -> None:
    objects = opened(uri).objects
    for name in ("rows/a.jsonl", "rows/more/b.jsonl", "rows/README.md"):
        objects.overwrite(name, b"{}\n")
    folder = fetch(Source(f"{uri}/rows", "Dataset", "spec.dataset.uri", ROWS), tmp_path / "all", "/nowhere")
    assert folder.files == ("a.jsonl", "more/b.jsonl")
    single = fetch(Source(f"{uri}/rows/more/b.jsonl", "Dataset", "spec.dataset.uri", ROWS), tmp_path / "one", "/nowhere")
    assert (single.folder / single.files[0]).read_bytes() == b"{}\n"


def test_what_is_published_is_served_from_there(uri: str, model: Path, tmp_path: Path) -> None:
    winner = commit(f"{uri}/store", "1-a", model)
    store = opened(f"{uri}/store")
    manifest = store.read("merge", "f1")
    assert manifest is not None
    assert manifest.prefix == winner
    publish.copy(opened(f"{uri}/published").objects, "merged", manifest, model, tmp_path / "read-back")
    target = tmp_path / "served"
    target.mkdir()
    load(f"{uri}/published/merged", target, folder_digest(manifest.files), None, None)
    assert (target / "model" / "config.json").read_text() == "{}"
    opened(f"{uri}/published").objects.overwrite("merged/config.json", b"[]")
    with pytest.raises(StepFailed, match="ArtifactDamaged"):
        load(f"{uri}/published/merged", tmp_path / "again", folder_digest(manifest.files), None, None)


Touch = Callable[[Store], object]


@pytest.mark.parametrize("touch", [lambda s: s.read("merge", "f1"), lambda s: s.checkpoints("f1")], ids=["get", "list"])
@pytest.mark.parametrize("name", ["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCOUNT_NAME"])
def test_wrong_credentials_name_the_keys_and_the_secret(
    uri: str, name: str, touch: Touch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong key is refused by the server; without an account there is none to ask."""
    if name == "AZURE_STORAGE_ACCOUNT_KEY":
        monkeypatch.setenv(name, "d3Jvbmc=")
    else:
        monkeypatch.delenv(name)
    with pytest.raises(StepFailed, match=r"check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY") as denied:
        touch(opened(uri))
    assert (denied.value.exit_code, denied.value.reason) == (ExitCode.SOURCE_DENIED, "StoreAccessDenied")
    with pytest.raises(StepFailed, match=r"AZURE_STORAGE_ACCOUNT_KEY in spec\.dataset\.secretRef") as source:
        fetch(Source(uri, "Dataset", "spec.dataset.uri", ROWS), Path("/nowhere"), "/nowhere")
    assert source.value.reason == "DatasetAccessDenied"


@pytest.mark.parametrize(
    "touch", [lambda s: s.objects.overwrite("a", b"b"), lambda s: s.objects.sizes("a")], ids=["put", "list"]
)
def test_a_container_that_is_not_there(uri: str, touch: Touch) -> None:
    with pytest.raises(StepFailed) as missing:
        touch(opened(uri.replace(CONTAINER, "nowhere")))
    assert (missing.value.exit_code, missing.value.reason) == (ExitCode.BAD_CONFIG, "StoreNotFound")
    with pytest.raises(StepFailed, match="nothing lies at az://nowhere"):
        fetch(Source("az://nowhere/rows", "Dataset", "spec.dataset.uri", ROWS), Path("/nowhere"), "/nowhere")
