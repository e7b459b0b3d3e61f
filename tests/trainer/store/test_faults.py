"""What servers, networks and disks do to a store: at every request, and at every write, of a whole commit and its reading."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.trainer.conftest import BUCKET
from tests.waiting import within

from finetune_trainer import buckets
from finetune_trainer.buckets import MIB
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import ArtifactFacts, Manifest, StepResult
from finetune_trainer.failures import StepFailed
from finetune_trainer.store import bucket
from finetune_trainer.store.entries import Provenance, Store, open_store

SLOW_SECONDS = 0.2
FAULTS = ("500", "503", "slow", "request cut", "answer cut", "answer lost")
Place = Callable[[], Store]


class FaultyServer(ThreadingHTTPServer):
    """An S3 server behind which requests are passed on. From request `at` on, so many are struck by `fault`."""

    daemon_threads = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.behind = urlsplit(server).netloc
        self.fault, self.at, self.times = "", 0, 1
        self.seen = 0
        self._counting = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def strike(self, fault: str, at: int, times: int = 1) -> None:
        self.fault, self.at, self.times, self.seen = fault, at, times, 0

    def next_fault(self) -> str:
        with self._counting:
            self.seen += 1
            return self.fault if self.at <= self.seen < self.at + self.times else ""

    def handle_error(self, *_: object) -> None:
        """A client that goes away in the middle is what some of the faults are about."""


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def _pass(self) -> None:
        fault, size = self.server.next_fault(), int(self.headers.get("Content-Length") or 0)
        if fault == "request cut":
            self.rfile.read(size // 2)
            self._cut()
            return
        body = self.rfile.read(size)
        if fault in ("500", "503"):
            self._answer(int(fault), {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        if fault == "slow":
            within(SLOW_SECONDS, lambda: False)
        onward = http.client.HTTPConnection(self.server.behind, timeout=30)
        onward.request(self.command, self.path, body, dict(self.headers))
        answer = onward.getresponse()
        content = answer.read()
        onward.close()
        if fault == "answer lost":
            self._cut()
            return
        self._answer(answer.status, dict(answer.getheaders()), content, cut=fault == "answer cut")

    def _answer(self, code: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
        self.send_response_only(code)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if "content-length" not in {name.lower() for name in headers}:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing: a test that fails tells the request's number."""


for verb in ("GET", "PUT", "POST", "DELETE", "HEAD"):
    setattr(_Passing, f"do_{verb}", _Passing._pass)


@pytest.fixture
def server(gateway: tuple[str, Path]) -> Iterator[FaultyServer]:
    faulty = FaultyServer(gateway[0])
    threading.Thread(target=faulty.serve_forever, daemon=True).start()
    yield faulty
    faulty.shutdown()
    faulty.server_close()


@pytest.fixture
def opened(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Opens a store of its own each time, in a bucket behind the faulty server."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    pause = timedelta(milliseconds=10)
    monkeypatch.setitem(buckets.RETRIES, "backoff", {"init_backoff": pause, "max_backoff": pause, "base": 2})
    made = iter(range(10**6))
    return lambda: open_store(StoreConfig(uri=f"s3://{BUCKET}/{tmp_path.name}/{next(made)}", endpoint=server.url), "/nowhere")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(os.urandom(300_000))
    (made / "deep" / "config.json").write_text("{}")
    return made


def commit(store: Store, folder: Path, attempt: str = "1") -> Manifest:
    result = StepResult(step="merge", fingerprint="f1", artifact=ArtifactFacts.made("merged", "Safetensors"))
    return store.commit("merge", attempt, folder, result, Provenance("merge", {"train": "f0"}, {"torch": "2"}))


def whole_way(store: Store, folder: Path, into: Path) -> None:
    """A checkpoint is kept and loaded, an entry committed, found and fetched; each byte is as it was made."""
    shutil.rmtree(into, ignore_errors=True)
    store.commit_checkpoint("f1", 5, "1", store.upload_checkpoint("f1", 5, folder, "1"))
    assert store.checkpoints("f1") == [5]
    same(store.load_checkpoint("f1", 5, into / "checkpoint"), folder)
    manifest = commit(store, folder)
    assert manifest.prefix == "1"
    assert store.read("merge", "f1") == manifest
    same(store.fetch("merge", manifest, into / "entry"), folder)


def same(found: Path, made: Path) -> None:
    files = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()}
    assert {p.relative_to(found).as_posix() for p in found.rglob("*") if p.is_file()} - {"files.json"} == files
    assert all((found / name).read_bytes() == (made / name).read_bytes() for name in files)


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_at_any_request_is_lived_through(
    opened: Place, server: FaultyServer, folder: Path, tmp_path: Path, fault: str
) -> None:
    server.strike("", 0)
    whole_way(opened(), folder, tmp_path / "into")
    requests = server.seen
    assert requests > 15
    for at in range(1, requests + 1):
        server.strike(fault, at)
        whole_way(opened(), folder, tmp_path / "into")
        assert server.seen >= at, f"request {at} of {requests} was never sent"


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_at_any_part_of_a_large_file_is_lived_through(
    opened: Place, server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(bucket, "PART_BYTES", 5 * MIB)  # the least that S3 takes
    large = tmp_path / "large"
    large.write_bytes(os.urandom(5 * MIB + 1))
    for at in range(1, 5):  # begun, two parts, completed
        store = opened().objects
        server.strike(fault, at)
        store.write_file("large", large)
        assert server.seen >= 4
        assert store.read("large") == large.read_bytes()


@pytest.mark.parametrize("fault", ["500", "503", "request cut", "answer lost"])
def test_a_server_that_stays_ill_fails_the_attempt_and_the_next_one_ends_well(
    opened: Place, server: FaultyServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setitem(buckets.RETRIES, "max_retries", 1)
    server.strike("", 0)
    commit(opened(), folder)
    for at in range(1, server.seen + 1):
        store = opened()
        server.strike(fault, at, times=1000)
        with pytest.raises(StepFailed) as caught:
            commit(store, folder)
        assert (caught.value.exit_code, caught.value.reason) == (ExitCode.STORE_UNAVAILABLE, "StoreUnavailable")
        server.strike("", 0)
        found = store.read("merge", "f1")
        assert found is None or found.prefix == "1"
        kept = commit(store, folder, "2")
        assert store.read("merge", "f1") == kept
        same(store.fetch("merge", kept, tmp_path / f"{fault}-{at}"), folder)


def test_a_disk_that_is_full_at_any_write_fails_the_attempt_and_the_next_one_ends_well(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.sync)
    commit(open_store(StoreConfig(uri="pvc://claim/calm"), str(tmp_path)), folder)
    writes = disk.synced
    assert writes >= 6
    for disk.full_at in range(1, writes + 1):
        disk.synced, disk.is_full = 0, True
        store = open_store(StoreConfig(uri=f"pvc://claim/{disk.full_at}"), str(tmp_path))
        with pytest.raises(StepFailed, match="No space left on device") as caught:
            commit(store, folder)
        assert caught.value.exit_code is ExitCode.STORE_UNAVAILABLE
        found = store.read("merge", "f1")
        assert found is None or disk.full_at == writes, "the commit itself is the last write"
        disk.is_full = False
        kept = commit(store, folder, "2")
        assert store.read("merge", "f1") == kept
        same(store.fetch("merge", kept, tmp_path), folder)


class Disk:
    """From a write on it takes half of what is written, and says so."""

    def __init__(self) -> None:
        self.synced = self.full_at = 0
        self.is_full = False

    def sync(self, descriptor: int) -> None:
        self.synced += 1
        if self.is_full and self.synced >= self.full_at:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.truncate(f"/proc/self/fd/{descriptor}", os.fstat(descriptor).st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
