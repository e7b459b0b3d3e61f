"""A model hub that speaks the Hugging Face Hub's protocol, for machines that cannot reach the real one.

It serves directories: `ORG/NAME` is a model, `datasets/ORG/NAME` a dataset. The stock `huggingface_hub` client works
against it with HF_ENDPOINT set. A repository has one commit, named by its content; any branch name stands for it.

A file `.gated` in a repository makes it gated: it lists, one a line, the tokens that are let in. So does `.private`, and
the others are told that there is no such repository.

    python -m localcluster.hub DIRECTORY ADDRESS PORT
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from localcluster.processes import Process, answers
from localcluster.settings import NODE_ADDRESS, Settings

GATED, PRIVATE = ".gated", ".private"
LFS_BYTES = 10_000_000  # larger files are described by their sha256, as the hub does with Git LFS
POINTER_BYTES = 134  # what Git keeps of such a file
ID = r"(?P<id>[^/]+(?:/[^/]+)?)"
CALL = r"(?P<call>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.+))?"
API_PATH = re.compile(rf"/api/(?P<kind>models|datasets)/{ID}(?:/{CALL}|/auth-check)?")
FILE_PATH = re.compile(rf"/(?P<kind>datasets/)?{ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


def ensure(settings: Settings) -> None:
    """Start the hub on the node's address and return when it answers."""
    settings.hub_directory.mkdir(parents=True, exist_ok=True)
    arguments = [str(settings.hub_directory), NODE_ADDRESS, str(settings.hub_port)]
    command = [sys.executable, "-m", "localcluster.hub", *arguments]
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONUNBUFFERED": "1"}
    process = Process(
        settings.directory,
        "hub",
        command,
        environment,
        configuration=(Path(__file__),),
        listens_on=(NODE_ADDRESS, settings.hub_port),
    )
    process.ensure()
    process.wait(lambda: answers(f"{settings.hub_url}/healthz"))


class Refused(Exception):
    """An error as the hub reports it: a status, a code for programs and a sentence for people."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Repository:
    """One directory, seen as a repository with one commit."""

    id: str
    path: Path

    def files(self) -> list[Path]:
        """Paths relative to the repository, sorted; hidden ones are not part of it."""
        found = (Path(folder, name).relative_to(self.path) for folder, _, names in os.walk(self.path) for name in names)
        return sorted(path for path in found if not _is_hidden(path))

    def paths(self) -> list[Path]:
        """Files and the folders that they are in."""
        files = self.files()
        folders = {parent for file in files for parent in file.parents if parent != Path()}
        return [*sorted(folders), *files]

    def file(self, path: str) -> Path:
        """The file at `path`, Refused if there is none."""
        relative = Path(path)
        file = self.path / relative
        if _is_hidden(relative) or ".." in relative.parts or not file.is_file():
            raise Refused(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{self.id} has no file {path}")
        return file

    @property
    def commit(self) -> str:
        """Named by the content: it changes when a file does."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path in self.files():
            digest.update(f"{path}\0{etag(self.path / path)}\n".encode())
        return digest.hexdigest()

    def check_revision(self, revision: str) -> None:
        if revision not in ("main", self.commit):
            raise Refused(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"{self.id} has no revision {revision}, only main")

    def check_access(self, token: str | None) -> None:
        """A gated repository describes itself to everybody and gives its files to those on the list."""
        gate = self.path / GATED
        if not gate.exists() or token in gate.read_text().split():
            return
        if token:
            raise Refused(HTTPStatus.UNAUTHORIZED, "", "Invalid credentials in Authorization header")
        raise Refused(HTTPStatus.FORBIDDEN, "GatedRepo", f"Access to {self.id} is restricted: send a token that is let in")

    def describe(self) -> dict[str, object]:
        return {
            "_id": self.commit[:24],
            "id": self.id,
            "author": self.id.rpartition("/")[0] or None,
            "sha": self.commit,
            "private": (self.path / PRIVATE).exists(),
            "gated": "manual" if (self.path / GATED).exists() else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": str(path)} for path in self.files()],
        }

    def tree(self, folder: str, recursive: bool) -> list[dict[str, object]]:
        """Entries below `folder` as the API lists them, sub-folders first."""
        top = Path(folder)
        inside = [path for path in self.paths() if top in path.parents]
        if not inside and folder:
            raise Refused(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{self.id} has no folder {folder}")
        return [self.entry(path) for path in inside if recursive or path.parent == top]

    def entry(self, path: Path) -> dict[str, object]:
        file = self.path / path
        if file.is_dir():
            return {"type": "directory", "path": str(path), "oid": self.commit, "size": 0}
        size, digest = file.stat().st_size, etag(file)
        lfs = {"lfs": {"oid": digest, "size": size, "pointerSize": POINTER_BYTES}} if size > LFS_BYTES else {}
        return {"type": "file", "path": str(path), "oid": digest, "size": size, **lfs}


def etag(file: Path) -> str:
    """A large file's sha256, a small file's Git blob id: what the hub sends and the client keys its cache by."""
    stat = file.stat()
    return _digest(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=10_000)
def _digest(file: Path, size: int, _modified: int) -> str:
    with file.open("rb") as stream:
        if size > LFS_BYTES:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        return hashlib.sha1(b"blob %d\0" % size + stream.read(), usedforsecurity=False).hexdigest()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") and part not in (".gitattributes",) for part in path.parts)


Form = Mapping[str, list[str]]  # of a query or a POST


@dataclass(frozen=True)
class Answer:
    """What is sent: JSON, or bytes of a file from `start` on."""

    status: HTTPStatus = HTTPStatus.OK
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    start: int = 0
    length: int | None = None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    root: Path

    def do_HEAD(self) -> None:
        self._send(self._answer())

    do_GET = do_POST = do_HEAD

    def _answer(self) -> Answer:
        url = urlsplit(self.path)
        form = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        try:
            if url.path == "/healthz":
                return Answer(body=b"ok")
            if match := API_PATH.fullmatch(url.path):
                return self._answer_api(match, parse_qs(url.query), parse_qs(form))
            if match := FILE_PATH.fullmatch(url.path):
                return self._answer_file(match)
            raise Refused(HTTPStatus.NOT_FOUND, "", f"this hub has no {url.path}")
        except Refused as refused:
            code = {"X-Error-Code": refused.code} if refused.code else {}
            return _json({"error": str(refused)}, refused.status, {"X-Error-Message": str(refused), **code})

    def _answer_api(self, match: re.Match[str], query: Form, form: Form) -> Answer:
        repository = self._repository(match["kind"] == "datasets", match["id"])
        if match[0].endswith("/auth-check"):
            repository.check_access(self._token())
            return _json({})
        if match["revision"]:
            repository.check_revision(unquote(match["revision"]))
        folder = unquote(match["path"] or "")
        if match["call"] == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            return _json(repository.tree(folder, recursive))
        if match["call"] == "paths-info":
            wanted = {Path(path) for path in form.get("paths", [])}
            return _json([repository.entry(path) for path in repository.paths() if path in wanted])
        return _json(repository.describe())

    def _answer_file(self, match: re.Match[str]) -> Answer:
        repository = self._repository(bool(match["kind"]), match["id"])
        repository.check_revision(unquote(match["revision"]))
        repository.check_access(self._token())
        file = repository.file(unquote(match["path"]))
        size, tag = file.stat().st_size, etag(file)
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if size > LFS_BYTES:
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(size)}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return Answer(headers=headers, file=file, length=size)
        first, last = int(span[1]), min(int(span[2] or size - 1), size - 1)
        if first > last:
            return Answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers={"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return Answer(HTTPStatus.PARTIAL_CONTENT, headers=headers, file=file, start=first, length=last - first + 1)

    def _token(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else None

    def _repository(self, is_dataset: bool, name: str) -> Repository:
        path = self.root / ("datasets" if is_dataset else "") / name
        if ".." in Path(name).parts or _is_hidden(Path(name)) or not path.is_dir():
            kind = "dataset" if is_dataset else "model"
            raise Refused(HTTPStatus.NOT_FOUND, "RepoNotFound", f"this hub has no {kind} {name}")
        hidden = path / PRIVATE
        if hidden.exists() and self._token() not in hidden.read_text().split():
            raise Refused(HTTPStatus.UNAUTHORIZED, "RepoNotFound", f"this hub has no {name} for you")
        return Repository(name, path)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if answer.file is None:
            self.wfile.write(answer.body)
            return
        if answer.length:  # sendfile takes 0 for "all of it"
            with answer.file.open("rb") as stream:
                self.connection.sendfile(stream, answer.start, answer.length)


def _json(value: object, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def main() -> None:
    """Serve until the process is ended."""
    Handler.root = Path(sys.argv[1])
    server = ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
