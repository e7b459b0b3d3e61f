"""Rows from gs:// through obstore's own client, at a server that speaks the part of Google's XML API that reading takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from tests.listening import Quiet, listening

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.failures import StepFailed
from finetune_trainer.sources.fetch import fetch
from finetune_trainer.sources.source import Source

OBJECTS = {"rows/a.jsonl": b"{}\n", "rows/more/b.jsonl": b"{}\n{}\n", "rows/README.md": b"no rows"}
WANTED = ("*.jsonl",)


class _Bucket(Quiet):
    """The bucket `data`, for who has the token "let-me-in"."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        bucket, _, name = unquote(url.path).lstrip("/").partition("/")
        if self.headers["Authorization"] != "Bearer let-me-in":
            self._send(401, b"<Error><Code>AuthenticationRequired</Code></Error>")
        elif bucket != "data":
            self._send(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif not name:
            self._send(200, self._listing(parse_qs(url.query).get("prefix", [""])[0]))
        elif name in OBJECTS:
            self._send(200, OBJECTS[name])
        else:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _listing(self, prefix: str) -> bytes:
        found = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(content)}</Size><ETag>1</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for name, content in OBJECTS.items()
            if name.startswith(prefix)
        )
        return f"<?xml version='1.0'?><ListBucketResult><Name>data</Name>{found}</ListBucketResult>".encode()

    def _send(self, status: int, content: bytes) -> None:
        self.answer(status, content, ETag='"1"', Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "let-me-in")
    with listening(_Bucket) as port:
        monkeypatch.setenv("GOOGLE_BASE_URL", f"http://127.0.0.1:{port}")
        yield


@pytest.mark.parametrize(
    ("path", "expected"),
    [("data/rows", {"a.jsonl": 1, "more/b.jsonl": 2}), ("data/rows/more/b.jsonl", {"b.jsonl": 2})],
)
def test_rows_from_google(tmp_path: Path, path: str, expected: dict[str, int]) -> None:
    fetched = fetch(Source(f"gs://{path}", "Dataset", "spec.dataset.uri", WANTED), tmp_path, "/nowhere")
    assert {name: len((fetched.folder / name).read_text().splitlines()) for name in fetched.files} == expected


def test_what_google_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("gs://data/none", "gs://nobucket/rows"):
        with pytest.raises(StepFailed, match=uri) as caught:
            fetch(Source(uri, "Dataset", "spec.dataset.uri", WANTED), tmp_path, "/nowhere")
        assert (caught.value.exit_code, caught.value.reason) == (ExitCode.SOURCE_NOT_FOUND, "DatasetNotFound")
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "wrong")
    with pytest.raises(StepFailed, match=r"check GOOGLE_SERVICE_ACCOUNT_KEY in spec\.dataset\.secretRef") as caught:
        fetch(Source("gs://data/rows", "Dataset", "spec.dataset.uri", WANTED), tmp_path, "/nowhere")
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.SOURCE_DENIED, "DatasetAccessDenied")
