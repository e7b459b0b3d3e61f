"""Rows over https:// from a real server with its own certificate: resumed, waited for, checked, refused."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.listening import Quiet, listening

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.failures import StepFailed
from finetune_trainer.sources.fetch import fetch
from finetune_trainer.sources.source import Source

ROWS = b"".join(b'{"prompt": "%d", "completion": "answer"}\n' % n for n in range(5000))
DIGEST = hashlib.sha256(ROWS).hexdigest()


@dataclass
class Site:
    """What the server does with each request, in order; whole answers after the last."""

    url: str = ""
    moods: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)  # Range and Authorization of each request
    tag: str = '"one"'


class _Handler(Quiet):
    site: Site

    def do_GET(self) -> None:
        site, asked = self.site, self.headers.get("Range", "")
        site.asked.append((asked, self.headers.get("Authorization", "")))
        mood = site.moods.pop(0) if site.moods else "well"
        if mood.isdigit():
            self.answer(int(mood), Retry_After="7")
            return
        if mood == "changed":
            site.tag = '"two"'
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.headers["If-Range"] == site.tag else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", site.tag)
        self.send_header("Content-Length", str(len(ROWS) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(ROWS) - 1}/{len(ROWS)}")
        self.end_headers()
        rest = ROWS[start:]
        self.wfile.write(rest[: len(rest) // 2] if mood == "breaks" else rest)
        self.close_connection = True


@pytest.fixture
def site(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    made = Site()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with listening(type("Handler", (_Handler,), {"site": made}), tls=context) as port:
        made.url = f"https://localhost:{port}/data/rows.jsonl"
        yield made


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited between tries."""
    slept: list[float] = []
    monkeypatch.setattr("finetune_trainer.sources.retries.time.sleep", slept.append)
    return slept


@pytest.fixture
def rows_of(tmp_path: Path) -> Callable[[str], bytes]:
    def get(uri: str) -> bytes:
        fetched = fetch(Source(uri, "Dataset", "spec.dataset.uri", ("*.jsonl",)), tmp_path / "rows", "/nowhere")
        assert fetched.files == ("rows.jsonl",)
        assert [path.name for path in fetched.folder.iterdir()] == ["rows.jsonl"]
        return (fetched.folder / "rows.jsonl").read_bytes()

    return get


def test_rows_over_https(site: Site, rows_of: Callable[[str], bytes]) -> None:
    assert rows_of(f"{site.url}#sha256={DIGEST}") == ROWS
    assert site.asked == [("", "")]


def test_a_broken_download_goes_on_where_it_ended(site: Site, rows_of: Callable[[str], bytes], waits: list[float]) -> None:
    site.moods = ["breaks", "breaks"]
    assert rows_of(site.url) == ROWS
    half = len(ROWS) // 2
    assert [asked for asked, _ in site.asked] == ["", f"bytes={half}-", f"bytes={half + (len(ROWS) - half) // 2}-"]
    assert waits == [2.0, 4.0]


def test_a_file_that_changed_meanwhile_is_fetched_anew(site: Site, rows_of: Callable[[str], bytes], waits: list[float]) -> None:
    site.moods = ["breaks", "changed"]
    assert rows_of(f"{site.url}#sha256={DIGEST}") == ROWS
    assert len(waits) == 1


def test_a_busy_server_is_waited_for_as_it_asks(site: Site, rows_of: Callable[[str], bytes], waits: list[float]) -> None:
    site.moods = ["503", "429"]
    assert rows_of(site.url) == ROWS
    assert waits == [7.0, 7.0]


def test_the_credential_is_sent(site: Site, rows_of: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_AUTHORIZATION", "Bearer let-me-in")
    rows_of(site.url)
    assert site.asked == [("", "Bearer let-me-in")]


@pytest.mark.parametrize(
    ("mood", "code", "reason", "said"),
    [
        ("404", ExitCode.SOURCE_NOT_FOUND, "DatasetNotFound", "answered HTTP 404: check the address"),
        (
            "401",
            ExitCode.SOURCE_DENIED,
            "DatasetAccessDenied",
            "set spec.dataset.secretRef to a Secret with the key HTTPS_AUTH",
        ),
        ("503", ExitCode.SOURCE_UNAVAILABLE, "SourceUnavailable", "did not answer"),
    ],
)
def test_what_a_server_refuses(
    site: Site,
    rows_of: Callable[[str], bytes],
    waits: list[float],
    mood: str,
    code: ExitCode,
    reason: str,
    said: str,
) -> None:
    site.moods = [mood] * 9
    with pytest.raises(StepFailed, match=said) as caught:
        rows_of(site.url)
    assert (caught.value.exit_code, caught.value.reason) == (code, reason)
    assert len(waits) == (4 if mood == "503" else 0)


def test_rows_with_another_digest_are_refused(site: Site, rows_of: Callable[[str], bytes]) -> None:
    with pytest.raises(StepFailed, match=f"has the sha256 {DIGEST}, not the one after #sha256=") as caught:
        rows_of(f"{site.url}#sha256={'0' * 64}")
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_DATA, "DatasetDigestMismatch")


def test_a_server_with_a_strange_certificate_is_not_trusted(
    site: Site, rows_of: Callable[[str], bytes], waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(StepFailed, match=r"(?i)certificate"):
        rows_of(site.url)
    assert len(waits) == 4
