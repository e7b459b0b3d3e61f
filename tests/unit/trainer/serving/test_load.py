"""The loader of serving pods: what it refuses, and what it leaves for the engine, from a claim and from S3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from tests.listening import Quiet, listening

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pod import ENV_MOUNTS, ENV_TERMINATION_LOG
from finetune_trainer.contract.reports import Failure, Termination
from finetune_trainer.serving import load
from finetune_trainer.store.files import describe, files_json, folder_digest

Mounts = Path


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mounts:
    monkeypatch.setenv(ENV_MOUNTS, str(tmp_path / "mnt"))
    monkeypatch.setenv(ENV_TERMINATION_LOG, str(tmp_path / "termination"))
    (tmp_path / "target").mkdir()
    return tmp_path


@pytest.fixture
def gguf(mounts: Mounts) -> Path:
    """A committed folder of one GGUF file on the claim `models`."""
    return commit(mounts / "mnt/claims/models/q4", {"q4.gguf": "weights", "Modelfile": "FROM q4.gguf"})


def commit(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "files.json").write_bytes(files_json(describe(folder)))
    return folder


def digest(folder: Path) -> str:
    return folder_digest(describe(folder))


def run(mounts: Mounts, uri: str, *options: str) -> tuple[int, Failure | None]:
    status = load.main(["--uri", uri, "--target", str(mounts / "target"), *options])
    return status, Termination.model_validate_json((mounts / "termination").read_text()).failure


def test_folder_of_a_claim_is_linked_where_it_lies(mounts: Mounts, gguf: Path) -> None:
    assert run(mounts, "pvc://models/q4", "--digest", digest(gguf), "--gguf") == (0, None)
    assert (mounts / "target/model").resolve() == gguf
    assert (mounts / "target/model.gguf").resolve() == gguf / "q4.gguf"


def test_restarted_loader_does_it_again(mounts: Mounts, gguf: Path) -> None:
    for _ in range(2):
        assert run(mounts, "pvc://models/q4", "--digest", digest(gguf), "--gguf") == (0, None)


def test_same_size_and_other_content_is_refused(mounts: Mounts, gguf: Path) -> None:
    asked = digest(gguf)
    (gguf / "q4.gguf").write_text("WEIGHTS")
    status, failure = run(mounts, "pvc://models/q4", "--digest", asked, "--gguf")
    assert status == ExitCode.BAD_CONFIG
    assert failure is not None
    assert failure.reason == "ModelDamaged"
    assert "q4.gguf was changed" in failure.message
    assert not (mounts / "target/model").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "q4.gguf").write_text("cut"), "q4.gguf has 3 bytes instead of 7"),
        (lambda f: (f / "q4.gguf").unlink(), "q4.gguf has no bytes"),
        (lambda f: (f / "files.json").unlink(), "has no files.json"),
        (lambda f: (f / "files.json").write_text("{}"), "can't be read"),
        (lambda f: commit(f, {"q4.gguf": "another"}), "another model"),
    ],
    ids=["cut", "missing", "no list", "broken list", "another model"],
)
def test_damaged_folders_are_refused(mounts: Mounts, gguf: Path, spoil: object, said: str) -> None:
    asked = digest(gguf)
    spoil(gguf)  # type: ignore[operator]
    status, failure = run(mounts, "pvc://models/q4", "--digest", asked, "--gguf")
    assert status == ExitCode.BAD_CONFIG
    assert failure is not None
    assert said in failure.message


def test_list_that_leads_out_of_the_folder_is_refused(mounts: Mounts, gguf: Path) -> None:
    (gguf.parent / "secret").write_text("x")
    (file, *_) = describe(gguf)
    outside = (file.model_copy(update={"path": "../secret"}),)
    (gguf / "files.json").write_bytes(files_json(outside))
    _, failure = run(mounts, "pvc://models/q4", "--digest", folder_digest(outside), "--gguf")
    assert failure is not None
    assert "outside" in failure.message


def test_without_a_digest_any_model_folder_will_do(mounts: Mounts) -> None:
    folder = mounts / "mnt/claims/models/mine"
    folder.mkdir(parents=True)
    status, failure = run(mounts, "pvc://models/mine")
    assert (status, failure and failure.reason) == (ExitCode.BAD_DATA, "NotAModel")
    (folder / "config.json").write_text("{}")
    assert run(mounts, "pvc://models/mine") == (0, None)


@pytest.mark.parametrize("names", [[], ["a.gguf", "b.gguf"]])
def test_llamacpp_takes_exactly_one_file(mounts: Mounts, names: list[str]) -> None:
    folder = mounts / "mnt/claims/models/several"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()
    status, failure = run(mounts, "pvc://models/several", "--gguf")
    assert (status, failure and failure.reason) == (ExitCode.BAD_DATA, "NotAModel")


def test_missing_folder_names_the_field(mounts: Mounts) -> None:
    status, failure = run(mounts, "pvc://models/nowhere")
    assert status == ExitCode.SOURCE_NOT_FOUND
    assert failure is not None
    assert "spec.model.uri" in failure.message


# ── S3 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A read-only S3 server for the bucket `models`: its endpoint, and the folder of its objects."""
    root = tmp_path / "s3"
    root.mkdir()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    class Handler(Quiet):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            key = unquote(url.path).removeprefix("/models").strip("/")
            if "denied" in self.path:
                self._send(403, b"<Error><Code>AccessDenied</Code></Error>")
            elif "list-type" in url.query:
                self._send(200, listing(root, parse_qs(url.query)["prefix"][0]))
            elif (root / key).is_file():
                self._send(200, (root / key).read_bytes())
            else:
                self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")

        def _send(self, code: int, body: bytes) -> None:
            self.answer(code, body, ETag='"1"', Last_Modified="Mon, 23 Nov 2026 12:00:00 GMT")

    with listening(Handler) as port:
        yield f"http://127.0.0.1:{port}", root


def listing(root: Path, prefix: str) -> bytes:
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.relative_to(root).as_posix().startswith(prefix)]
    entries = "".join(
        f"<Contents><Key>{p.relative_to(root).as_posix()}</Key><Size>{p.stat().st_size}</Size>"
        "<LastModified>2026-11-23T12:00:00Z</LastModified><ETag>1</ETag></Contents>"
        for p in files
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


def test_s3_folder_is_downloaded_and_checked(mounts: Mounts, bucket: tuple[str, Path]) -> None:
    endpoint, root = bucket
    folder = commit(root / "team/merged", {"config.json": "{}", "model.safetensors": "weights", "deep/vocab.txt": "a"})
    options = ("--digest", digest(folder), "--endpoint", endpoint)
    assert run(mounts, "s3://models/team/merged", *options) == (0, None)
    assert (mounts / "target/model/model.safetensors").read_text() == "weights"
    assert (mounts / "target/model/deep/vocab.txt").read_text() == "a"
    (root / "team/merged/model.safetensors").unlink()  # a restarted container downloads nothing twice
    assert run(mounts, "s3://models/team/merged", *options) == (0, None)


def test_s3_folder_without_a_list_is_taken_as_it_is(mounts: Mounts, bucket: tuple[str, Path]) -> None:
    endpoint, root = bucket
    (root / "plain").mkdir()
    (root / "plain/config.json").write_text(json.dumps({"a": 1}))
    assert run(mounts, "s3://models/plain", "--endpoint", endpoint) == (0, None)
    assert json.loads((mounts / "target/model/config.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("uri", "options", "reason", "field"),
    [
        ("s3://models/nowhere", (), "ModelNotFound", "spec.model.uri"),
        ("s3://models/denied/x", (), "ModelAccessDenied", "spec.model.secretRef"),
        ("s3://models", (), "InvalidSpec", "spec.model.uri"),
    ],
)
def test_s3_refusals(
    mounts: Mounts, bucket: tuple[str, Path], uri: str, options: tuple[str, ...], reason: str, field: str
) -> None:
    _, failure = run(mounts, uri, "--endpoint", bucket[0], *options)
    assert failure is not None
    assert (failure.reason, field in failure.message) == (reason, True)


def test_s3_object_that_was_replaced_is_refused(mounts: Mounts, bucket: tuple[str, Path]) -> None:
    endpoint, root = bucket
    folder = commit(root / "merged", {"config.json": "{}", "model.safetensors": "weights"})
    asked = digest(folder)
    (folder / "model.safetensors").write_text("WEIGHTS")
    status, failure = run(mounts, "s3://models/merged", "--digest", asked, "--endpoint", endpoint)
    assert status != 0
    assert failure is not None
    assert "model.safetensors" in failure.message
