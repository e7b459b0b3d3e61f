"""Where files come from: a real S3 server, and the one retry policy for everything that is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from tests.trainer.conftest import make_certificate, versitygw

from finetune_trainer import buckets
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.failures import StepFailed
from finetune_trainer.model import weights
from finetune_trainer.serving import load
from finetune_trainer.sources import hub
from finetune_trainer.sources.fetch import fetch
from finetune_trainer.sources.retries import wait_asked_for, with_retries
from finetune_trainer.sources.source import Source, matches
from finetune_trainer.store.entries import open_store

BUCKET = "artifacts"  # as the fixture gateway makes it
MODEL = Source("s3://artifacts/models/tiny", "Model", "spec.model.uri", weights.WANTED, deep=False)
ROWS = ("*.jsonl", "*.parquet")


@pytest.fixture
def bucket(gateway: tuple[str, Path], tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Endpoint of an S3 server that holds a model and rows."""
    endpoint, root = gateway
    place = root / BUCKET
    if not (place / "models").exists():
        shutil.copytree(tiny_model, place / "models" / "tiny")
        (place / "models" / "tiny" / "pytorch_model.bin").write_bytes(b"a pickle")
        (place / "rows" / "more").mkdir(parents=True)
        (place / "rows" / "a.jsonl").write_text("{}\n")
        (place / "rows" / "more" / "b.jsonl").write_text("{}\n")
        (place / "rows" / "README.md").write_text("no rows")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return endpoint


def test_a_model_from_a_bucket_comes_without_its_pickles(bucket: str, tmp_path: Path, tiny_model: Path) -> None:
    fetched = fetch(MODEL, tmp_path / "model", "/nowhere", endpoint=bucket)
    assert set(fetched.files) == {path.name for path in tiny_model.iterdir()}
    weight = "model.safetensors"
    assert (fetched.folder / weight).read_bytes() == (tiny_model / weight).read_bytes()


def test_a_download_is_taken_up_where_it_ended(bucket: str, tmp_path: Path) -> None:
    fetched = fetch(MODEL, tmp_path / "model", "/nowhere", endpoint=bucket)
    whole, cut = fetched.folder / "model.safetensors", fetched.folder / "tokenizer.json"
    before, content = whole.stat().st_mtime_ns, cut.read_bytes()
    cut.write_bytes(content[:10])
    fetch(MODEL, tmp_path / "model", "/nowhere", endpoint=bucket)
    assert whole.stat().st_mtime_ns == before
    assert cut.read_bytes() == content


@pytest.mark.parametrize("path", ["rows", "rows/a.jsonl"])
def test_what_is_no_model_is_refused_before_it_is_downloaded(bucket: str, tmp_path: Path, path: str) -> None:
    source = Source(f"s3://{BUCKET}/{path}", "Model", "spec.model.uri", ("*",), check=weights.check_names)
    with pytest.raises(StepFailed, match=r"no config\.json") as caught:
        fetch(source, tmp_path / "model", "/nowhere", endpoint=bucket)
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_CONFIG, "ModelUnsupported")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("path", "wanted", "expected"),
    [
        ("rows", ROWS, ("a.jsonl", "more/b.jsonl")),
        ("rows/", ROWS, ("a.jsonl", "more/b.jsonl")),
        ("rows", ("more/*.jsonl",), ("more/b.jsonl",)),
        ("rows/more/b.jsonl", ROWS, ("b.jsonl",)),
        ("", ("rows/*.jsonl",), ("rows/a.jsonl",)),
    ],
)
def test_rows_from_a_bucket(bucket: str, tmp_path: Path, path: str, wanted: tuple[str, ...], expected: tuple[str, ...]) -> None:
    source = Source(f"s3://{BUCKET}/{path}", "Dataset", "spec.dataset.uri", wanted)
    fetched = fetch(source, tmp_path / "rows", "/nowhere", endpoint=bucket)
    assert fetched.files == expected
    assert all((fetched.folder / name).read_text() == "{}\n" for name in expected)


def test_what_a_bucket_refuses(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("s3://artifacts/none", "s3://nobucket/none"):
        with pytest.raises(StepFailed, match=uri) as caught:
            fetch(Source(uri, "Dataset", "spec.dataset.uri", ROWS), tmp_path, "/nowhere", endpoint=bucket)
        assert (caught.value.exit_code, caught.value.reason) == (ExitCode.SOURCE_NOT_FOUND, "DatasetNotFound")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StepFailed, match=r"spec\.model\.secretRef") as caught:
        fetch(MODEL, tmp_path, "/nowhere", endpoint=bucket)
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.SOURCE_DENIED, "ModelAccessDenied")


def test_a_bucket_behind_a_certificate_of_its_own(
    certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    root = tmp_path / "s3"
    root.mkdir()
    options = ("--cert", str(certificate[0]), "--key", str(certificate[1]), "--region", "eu-central-1")
    with versitygw(root, *options) as address:
        (root / BUCKET / "rows.jsonl").write_text("{}\n")
        source = Source(f"s3://{BUCKET}/rows.jsonl", "Dataset", "spec.dataset.uri", ROWS)
        fetched = fetch(source, tmp_path / "rows", "/nowhere", endpoint=f"https://{address}", region="eu-central-1")
        assert (fetched.folder / "rows.jsonl").read_text() == "{}\n"
        with pytest.raises(StepFailed, match=r"in another region: set spec\.storage\.artifacts\.region") as caught:
            fetch(source, tmp_path / "more", "/nowhere", endpoint=f"https://{address}", region="us-east-1")
        assert caught.value.reason == "DatasetAccessDenied"


def test_a_certificate_is_trusted_only_where_it_is_among_those_given(
    certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS_CA_BUNDLE is what spec.storage.artifacts.caSecretRef sets: a file of one or several certificates."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(buckets, "RETRIES", {"max_retries": 0, "retry_timeout": timedelta(seconds=5)})
    strange, _ = make_certificate(tmp_path)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(strange.read_bytes() + certificate[0].read_bytes())
    root = tmp_path / "s3"
    root.mkdir()
    with versitygw(root, "--cert", str(certificate[0]), "--key", str(certificate[1])) as address:
        config = StoreConfig(uri=f"s3://{BUCKET}/job", endpoint=f"https://{address}")
        for trusted in (None, strange):
            if trusted is not None:
                monkeypatch.setenv("AWS_CA_BUNDLE", str(trusted))
            with pytest.raises(
                StepFailed, match=r"certificate is not trusted: set spec\.storage\.artifacts\.caSecretRef"
            ) as caught:
                open_store(config, "/nowhere").objects.overwrite("a", b"b")
            assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_CONFIG, "StoreNotTrusted")
            with pytest.raises(StepFailed, match="certificate is not trusted") as caught:
                fetch(Source(config.uri, "Dataset", "spec.dataset.uri", ROWS), tmp_path, "/nowhere", endpoint=config.endpoint)
            assert (caught.value.exit_code, caught.value.reason) == (ExitCode.SOURCE_DENIED, "DatasetAccessDenied")
        with pytest.raises(StepFailed, match=r"certificate is not trusted: set spec\.model\.caSecretRef"):
            load.fetch(f"{config.uri}/merged", tmp_path, None, config.endpoint, None)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
        open_store(config, "/nowhere").objects.overwrite("a", b"b")
        assert (root / BUCKET / "job" / "a").read_bytes() == b"b"


# ── Retries ───────────────────────────────────────────────────────────────────────────────────────────────────────────

HUB = Source("hf://org/model", "Model", "spec.model.uri", ("*",))
MEANING = partial(hub._meaning_at_hub, HUB)


def answer(status: int, **headers: str) -> HfHubHTTPError:
    request = httpx2.Request("GET", "http://hub/api/models/org/model")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HfHubHTTPError("no", response=httpx2.Response(status, headers=named, request=request))


def outcomes(*errors: Exception) -> Callable[[], str]:
    """An action that fails with each of these, then succeeds."""
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "fetched"

    return action


@pytest.mark.parametrize(
    ("name", "errors", "waits"),
    [
        ("nothing wrong", [], []),
        ("server error", [answer(503)], [2.0]),
        ("waits double", [answer(500), answer(502), httpx2.ConnectError("refused")], [2.0, 4.0, 8.0]),
        ("as long as the server asks", [answer(429, Retry_After="17"), answer(503)], [17.0, 4.0]),
        ("no answer", [httpx2.ReadTimeout("slow"), ConnectionResetError("gone")], [2.0, 4.0]),
    ],
)
def test_passing_errors_are_waited_out(name: str, errors: list[Exception], waits: list[float]) -> None:
    slept: list[float] = []
    assert with_retries(outcomes(*errors), MEANING, HUB.unavailable, slept.append) == "fetched", name
    assert slept == waits


@pytest.mark.parametrize(
    ("errors", "tries"), [([answer(503)] * 9, 5), ([answer(429, Retry_After="3600")], 1)], ids=["for ever", "an hour"]
)
def test_what_does_not_pass_is_left_to_the_operator(errors: list[Exception], tries: int) -> None:
    slept: list[float] = []
    with pytest.raises(StepFailed, match="hf://org/model did not answer") as caught:
        with_retries(outcomes(*errors), MEANING, HUB.unavailable, slept.append)
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.SOURCE_UNAVAILABLE, "SourceUnavailable")
    assert len(slept) == tries - 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("17", 17), ("Wed, 21 Oct 2015 07:28:30 GMT", 30), ("Wed, 21 Oct 2015 07:00:00 GMT", 0), ("soon", 0)],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float) -> None:
    assert wait_asked_for(header, now=lambda: 1445412480.0) == seconds  # 07:28:00 of that day


def test_a_refusal_is_not_tried_again() -> None:
    wrapped = LocalEntryNotFoundError("nothing cached")
    wrapped.__cause__ = answer(403)
    with pytest.raises(StepFailed) as caught:
        with_retries(outcomes(wrapped), MEANING, HUB.unavailable, lambda _: pytest.fail("waited"))
    assert caught.value.reason == "ModelAccessDenied"


def test_an_error_of_our_own_is_not_hidden() -> None:
    with pytest.raises(KeyError):
        with_retries(outcomes(KeyError("bug")), MEANING, HUB.unavailable, lambda _: pytest.fail("waited"))


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [
        ("a.jsonl", "*.jsonl", True),
        ("deep/er/a.jsonl", "*.jsonl", True),
        ("deep/a.jsonl", "deep/*.jsonl", True),
        ("deep/er/a.jsonl", "deep/*.jsonl", False),
        ("a.jsonl", "deep/*.jsonl", False),
        ("train-00001.parquet", "train-*.parquet", True),
    ],
)
def test_patterns(path: str, pattern: str, expected: bool) -> None:
    assert matches(path, pattern) is expected
