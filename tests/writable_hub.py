"""The local hub with what publishing needs of the Hugging Face Hub's protocol: repositories, branches, Git LFS, commits.

A branch other than main is the folder `ORG/NAME@BRANCH`. Tokens that may write are in `WRITERS`; `uploads` counts bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from localcluster import hub
from tests.listening import listening

WRITERS = ("hf_writer",)
ID = r"(?P<id>[^/]+/[^/]+)"
NAMED = re.compile(rf"(/api/models)?/{ID}/(?:revision|tree|paths-info|resolve)/(?P<revision>[^/?]+)")


class WritableHub(hub.Handler):
    """Each folder below `root` is a repository; what is uploaded waits in `.lfs` until a commit names it."""

    damaged: str = ""  # a file that arrives with another content than it was sent with
    failures: int = 0  # how many requests to commit are answered by 503
    uploads: list[str]  # paths that commits wrote

    def log_message(self, format: str, *args: Any) -> None:
        """Tests have their own output."""

    do_PUT = hub.Handler.do_HEAD  # noqa: N815

    def _answer(self) -> hub.Answer:
        path = self.path.partition("?")[0]
        routes = (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (rf"/api/models/{ID}/branch/(?P<revision>.+)", self._branch),
            (rf"/api/models/{ID}/preupload/(?P<revision>.+)", self._modes),
            (rf"/{ID}\.git/info/lfs/objects/batch", self._batch),
            (r"/lfs/(?P<oid>[0-9a-f]+)", self._receive),
            (rf"/api/models/{ID}/commit/(?P<revision>.+)", self._commit),
        )
        for pattern, answer in routes:
            if self.command in ("POST", "PUT") and (match := re.fullmatch(pattern, path)):
                body = self._body()
                if self.command == "POST" and self._token() not in WRITERS:
                    return hub._json({"error": "you may not write here"}, HTTPStatus.FORBIDDEN)
                return answer(match, body)
        if found := NAMED.match(self.path):
            self.path = self.path.replace(found["id"], self._folder(found["id"], found["revision"]).name_in(self.root), 1)
            self.path = self.path.replace(f"/{found['revision']}", "/main", 1)
        return super()._answer()

    def _body(self) -> bytes:
        """Files come in chunks: their sender reads them as it goes."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _folder(self, name: str, revision: str) -> Branch:
        """The folder of a branch, or the one whose commit this is."""
        for folder in sorted((self.root / name).parent.glob(f"{name.partition('/')[2]}*")):
            branch = Branch(folder)
            if folder.name == f"{name.partition('/')[2]}@{revision}" or branch.commit == revision:
                return branch
        return Branch(self.root / name)

    def _create(self, _match: re.Match[str], body: bytes) -> hub.Answer:
        asked = json.loads(body)
        folder = self.root / asked["organization"] / asked["name"]
        url = {"url": f"{self._address()}/{asked['organization']}/{asked['name']}"}
        if folder.exists():
            return hub._json(url | {"error": "You already created this model repo"}, HTTPStatus.CONFLICT)
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        if asked.get("visibility") == "private":
            (folder / hub.PRIVATE).write_text("\n".join(WRITERS))
        return hub._json(url)

    def _validate(self, _match: re.Match[str], body: bytes) -> hub.Answer:
        text = json.loads(body)["content"]
        wrong = re.search(r"^base_model: .*:", text, re.MULTILINE)
        errors = [{"message": '"base_model" must be a repository'}] if wrong else []
        return hub._json({"errors": errors, "warnings": []}, HTTPStatus.BAD_REQUEST if errors else HTTPStatus.OK)

    def _branch(self, match: re.Match[str], _body: bytes) -> hub.Answer:
        folder = self.root / match["id"]
        branch = folder.with_name(f"{folder.name}@{match['revision']}")
        if branch.exists():
            return hub._json({"error": "Reference already exists"}, HTTPStatus.CONFLICT)
        shutil.copytree(folder, branch)
        return hub._json({})

    def _modes(self, match: re.Match[str], body: bytes) -> hub.Answer:
        there = self._folder(match["id"], match["revision"]).path
        files = json.loads(body)["files"]
        return hub._json({"files": [self._mode(there / f["path"], f) for f in files]})

    @staticmethod
    def _mode(there: Path, asked: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if asked["size"] > hub.LFS_BYTES else "regular"
        oid = hub.etag(there) if there.is_file() else None
        return {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _batch(self, _match: re.Match[str], body: bytes) -> hub.Answer:
        objects = json.loads(body)["objects"]
        upload = {o["oid"]: {"upload": {"href": f"{self._address()}/lfs/{o['oid']}"}} for o in objects}
        have = {o["oid"] for o in objects if (self.root / ".lfs" / o["oid"]).exists()}
        return hub._json({"objects": [o | ({} if o["oid"] in have else {"actions": upload[o["oid"]]}) for o in objects]})

    def _receive(self, match: re.Match[str], body: bytes) -> hub.Answer:
        if hashlib.sha256(body).hexdigest() != match["oid"]:
            return hub._json({"error": "another content than was announced"}, HTTPStatus.BAD_REQUEST)
        (self.root / ".lfs").mkdir(exist_ok=True)
        (self.root / ".lfs" / match["oid"]).write_bytes(body)
        return hub._json({})

    def _commit(self, match: re.Match[str], body: bytes) -> hub.Answer:
        if type(self).failures > 0:
            type(self).failures -= 1
            return hub._json({"error": "later"}, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "0"})
        branch = self._folder(match["id"], match["revision"])
        for line in map(json.loads, body.splitlines()):
            if line["key"] != "header":
                self._apply(branch.path / line["value"]["path"], line["key"], line["value"])
        url = f"{self._address()}/{match['id']}/commit/{branch.commit}"
        return hub._json({"commitUrl": url, "commitOid": branch.commit})

    def _apply(self, file: Path, kind: str, value: dict[str, Any]) -> None:
        if kind == "deletedFile":
            file.unlink()
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        content = base64.b64decode(value["content"]) if kind == "file" else (self.root / ".lfs" / value["oid"]).read_bytes()
        file.write_bytes(content[::-1] if file.name == self.damaged else content)
        self.uploads.append(value["path"])

    def _address(self) -> str:
        return f"http://{self.headers['Host']}"


class Branch:
    """A folder with the content of one branch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def commit(self) -> str:
        return hub.Repository("", self.path).commit

    def name_in(self, root: Path) -> str:
        return self.path.relative_to(root).as_posix()


@contextmanager
def writable_hub(root: Path) -> Iterator[tuple[str, type[WritableHub]]]:
    """URL and state of a running hub over a directory."""

    class Handler(WritableHub):
        uploads: list[str] = []  # noqa: RUF012

    Handler.root = root
    with listening(Handler) as port:
        yield f"http://127.0.0.1:{port}", Handler
