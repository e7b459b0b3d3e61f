"""The artifact store on a directory and on a real S3 server: commits, damage, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import ArtifactFacts, Manifest, StepResult
from finetune_trainer.contract.served_rows import AskedRow
from finetune_trainer.failures import StepFailed
from finetune_trainer.serving.evaluated import asked_rows
from finetune_trainer.store.entries import Provenance, Store, open_store
from finetune_trainer.store.files import describe, folder_digest

BUCKET = "artifacts"  # as the fixture gateway makes it


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Path]:
    """A store and the directory in which its objects can be tampered with."""
    if request.param == "directory":
        config = StoreConfig(uri="pvc://claim/jobs/one")
        return open_store(config, str(tmp_path / "mounts")), tmp_path / "mounts" / "claims" / "claim" / "jobs" / "one"
    endpoint, root = request.getfixturevalue("gateway")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    prefix = tmp_path.name
    return open_store(StoreConfig(uri=f"s3://{BUCKET}/{prefix}", endpoint=endpoint), "/nowhere"), root / BUCKET / prefix


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    def make(content: str) -> Path:
        made = tmp_path / f"made-{content}"
        (made / "deep").mkdir(parents=True)
        (made / "model.safetensors").write_text(content)
        (made / "deep" / "config.json").write_text("{}")
        return made

    return make


def commit(store: Store, source: Path, attempt: str) -> Manifest:
    artifact = ArtifactFacts.made("merged", "Safetensors")
    result = StepResult(step="merge", fingerprint="f1", artifact=artifact)
    return store.commit("merge", attempt, source, result, Provenance("merge", {"train": "f0"}, {"torch": "2"}))


def test_a_commit_is_read_back_whole(place: tuple[Store, Path], folder: Callable[[str], Path], tmp_path: Path) -> None:
    store, _ = place
    assert store.read("merge", "f1") is None
    source = folder("one")
    manifest = commit(store, source, "1-abc")
    assert store.read("merge", "f1") == manifest
    assert [f.path for f in manifest.files] == ["deep/config.json", "model.safetensors"]
    assert manifest.result.artifact == ArtifactFacts(
        name="merged", format="Safetensors", path="merge/f1/1-abc", digest=folder_digest(describe(source)), bytes=5
    )
    fetched = store.fetch("merge", manifest, tmp_path / "fetched")
    assert (fetched / "model.safetensors").read_text() == "one"
    assert (fetched / "deep" / "config.json").read_text() == "{}"


def test_the_beginning_of_a_file_is_read_without_the_rest(place: tuple[Store, Path], folder: Callable[[str], Path]) -> None:
    """Models are larger than the disk of who only looks at their names."""
    store, _ = place
    commit(store, folder("one"), "1")
    file = "merge/f1/1/model.safetensors"
    assert (store.objects.begin(file, 2), store.objects.begin(file, 3)) == (b"on", b"one")
    with pytest.raises(StepFailed):
        store.objects.begin("merge/f1/1/lost", 2)


def test_files_json_lists_every_file_and_its_hash_is_the_digest(
    place: tuple[Store, Path], folder: Callable[[str], Path]
) -> None:
    import hashlib

    store, _ = place
    manifest = commit(store, folder("one"), "1")
    content = store.objects.read("merge/f1/1/files.json")
    assert content is not None
    listed = json.loads(content)
    assert [set(entry) for entry in listed["files"]] == [{"path", "bytes", "sha256"}] * 2
    assert manifest.result.artifact is not None
    assert manifest.result.artifact.digest == "sha256:" + hashlib.sha256(content).hexdigest()


def test_the_first_commit_wins_and_the_later_files_are_removed(
    place: tuple[Store, Path], folder: Callable[[str], Path]
) -> None:
    store, _ = place
    first = commit(store, folder("one"), "1-abc")
    assert commit(store, folder("two"), "2-def") == first
    assert store.objects.sizes("merge/f1/2-def") == {}
    assert store.read("merge", "f1") == first


def test_of_concurrent_commits_exactly_one_counts(place: tuple[Store, Path], folder: Callable[[str], Path]) -> None:
    store, _ = place
    sources = [folder(str(number)) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        manifests = list(pool.map(lambda n: commit(store, sources[n], f"{n}-pod"), range(6)))
    assert len({m.prefix for m in manifests}) == 1
    assert store.read("merge", "f1") == manifests[0]


def test_uncommitted_files_do_not_count(place: tuple[Store, Path], folder: Callable[[str], Path]) -> None:
    store, _ = place
    store.objects.write_file("merge/f1/1-abc/model.safetensors", folder("one") / "model.safetensors")
    assert store.read("merge", "f1") is None


@pytest.mark.parametrize("harm", ["cut", "gone", "list", "torn", "empty"])
def test_a_damaged_entry_counts_as_missing_and_the_next_commit_mends_it(
    place: tuple[Store, Path], folder: Callable[[str], Path], harm: str
) -> None:
    store, root = place
    commit(store, folder("one"), "1-abc")
    lies = root / "merge" / "f1" / "1-abc"
    if harm == "cut":
        (lies / "model.safetensors").write_text("on")
    elif harm == "gone":
        (lies / "deep" / "config.json").unlink()
    elif harm == "list":
        (lies / "files.json").unlink()
    else:
        manifest = lies.parent / "manifest.json"
        manifest.write_text(manifest.read_text()[: 100 if harm == "torn" else 0])
    assert store.read("merge", "f1") is None
    mended = commit(store, folder("two"), "2-def")
    assert mended.prefix == "2-def"
    assert store.read("merge", "f1") == mended


def test_a_directory_is_read_in_place_and_a_download_with_other_content_is_refused(
    place: tuple[Store, Path], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    store, root = place
    manifest = commit(store, folder("one"), "1-abc")
    if store.uri.startswith("pvc://"):  # read where it lies; who serves it checks files.json
        assert store.fetch("merge", manifest, tmp_path / "fetched") == root / "merge" / "f1" / "1-abc"
        return
    (root / "merge" / "f1" / "1-abc" / "model.safetensors").write_text("eno")
    with pytest.raises(StepFailed) as caught:
        store.fetch("merge", manifest, tmp_path / "fetched")
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.STORE_UNAVAILABLE, "ArtifactDamaged")
    assert not (tmp_path / "fetched" / "model.safetensors").exists()


def keep(store: Store, step: int, *folders: Path | str) -> None:
    """A checkpoint of one node or several; the last argument is the attempt."""
    *of_nodes, attempt = folders
    files = [file for node in of_nodes for file in store.upload_checkpoint("f1", step, Path(node), str(attempt))]
    store.commit_checkpoint("f1", step, str(attempt), files)


def test_checkpoints_are_listed_newest_first_and_dropped_oldest_first(
    place: tuple[Store, Path], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    store, _ = place
    assert store.checkpoints("f1") == []
    for step in (5, 10, 20):
        keep(store, step, folder(f"step{step}"), "1")
    store.objects.write_file("checkpoint/f1/15/1/half.pt", folder("half") / "model.safetensors")
    assert store.checkpoints("f1") == [20, 10, 5]
    store.drop_checkpoints("f1", keep=2)
    assert store.checkpoints("f1") == [20, 10]
    assert sorted(store.objects.children("checkpoint/f1")) == ["10", "20"]
    loaded = store.load_checkpoint("f1", 20, tmp_path / "loaded")
    assert (loaded / "model.safetensors").read_text() == "step20"
    store.drop_checkpoints("f1", keep=0)
    assert store.checkpoints("f1") == []


def test_the_last_checkpoint_of_a_step_counts(place: tuple[Store, Path], folder: Callable[[str], Path], tmp_path: Path) -> None:
    store, _ = place
    keep(store, 5, folder("one"), "1")
    keep(store, 5, folder("two"), "2")
    assert (store.load_checkpoint("f1", 5, tmp_path / "l") / "model.safetensors").read_text() == "two"


def test_a_checkpoint_is_what_all_nodes_brought(
    place: tuple[Store, Path], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    store, _ = place
    one, two = folder("one"), tmp_path / "two"
    two.mkdir()
    (two / "rank-1.pt").write_text("the other node's")
    store.upload_checkpoint("f1", 5, one, "1")
    assert store.checkpoints("f1") == []
    keep(store, 5, one, two, "1")
    loaded = store.load_checkpoint("f1", 5, tmp_path / "l")
    assert (loaded / "rank-1.pt").read_text() == "the other node's"
    assert (loaded / "model.safetensors").read_text() == "one"


@pytest.mark.parametrize("harm", ["same length", "cut", "gone", "list", "manifest"])
def test_a_damaged_checkpoint_is_refused(
    place: tuple[Store, Path], folder: Callable[[str], Path], tmp_path: Path, harm: str
) -> None:
    store, root = place
    keep(store, 5, folder("one"), "1")
    lies = root / "checkpoint" / "f1" / "5"
    if harm == "same length":
        (lies / "1" / "model.safetensors").write_text("eno")
    elif harm == "cut":
        (lies / "1" / "model.safetensors").write_text("")
    elif harm == "gone":
        (lies / "1" / "model.safetensors").unlink()
    elif harm == "list":
        (lies / "1" / "files.json").write_text('{"files": []}')
    else:
        (lies / "manifest.json").write_text("{")
    with pytest.raises(StepFailed):
        store.load_checkpoint("f1", 5, tmp_path / "l")


def test_wrong_credentials_and_a_missing_bucket_say_what_to_change(
    gateway: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, _ = gateway
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused = open_store(StoreConfig(uri=f"s3://{BUCKET}/x", endpoint=endpoint), "")
    touches: tuple[Callable[[], object], ...] = (lambda: refused.read("merge", "f1"), lambda: refused.checkpoints("f1"))
    for touch in touches:
        with pytest.raises(StepFailed) as denied:
            touch()
        assert (denied.value.exit_code, denied.value.reason) == (ExitCode.SOURCE_DENIED, "StoreAccessDenied")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    nowhere = open_store(StoreConfig(uri="s3://other/x", endpoint=endpoint), "").objects
    touches = (lambda: nowhere.overwrite("a", b"b"), lambda: nowhere.sizes("a"))
    for touch in touches:
        with pytest.raises(StepFailed) as missing:
            touch()
        assert (missing.value.exit_code, missing.value.reason) == (ExitCode.BAD_CONFIG, "StoreNotFound")


def test_a_directory_that_cannot_be_written_is_reported_as_the_store(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    (tmp_path / "claims").write_text("a file where the claim should be mounted")
    with pytest.raises(StepFailed) as caught:
        commit(open_store(StoreConfig(uri="pvc://claim/x"), str(tmp_path)), folder("one"), "1")
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.STORE_UNAVAILABLE, "StoreUnavailable")


def test_a_gate_reads_the_rows_of_an_evaluation_from_a_bucket(
    gateway: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    ids = {"prompt_ids": (1,), "asked_ids": (1,)}
    row = AskedRow(row=1, prompt="Wo\N{LINE SEPARATOR}?", special_tokens=False, max_tokens=4, answer="Hier", **ids)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "asked.jsonl").write_text(row.model_dump_json(by_alias=True) + "\n")
    place = StoreConfig(uri=f"s3://{BUCKET}/{tmp_path.name}", endpoint=gateway[0])
    result = StepResult(step="evaluate", fingerprint="f2")
    open_store(place, "/nowhere").commit("evaluate", "1-a", tmp_path / "rows", result, Provenance("evaluate", {}, {}))
    entry = place.model_copy(update={"uri": f"{place.uri}/evaluate/f2"})
    assert asked_rows(entry) == [row]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StepFailed, match=r"RowsAccessDenied: .* was refused: give the keys") as denied:
        asked_rows(entry)
    assert denied.value.exit_code is ExitCode.SOURCE_DENIED
