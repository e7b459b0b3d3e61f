"""Files of a folder, each with its digest, and the digest of them all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from finetune_trainer.contract.reports import File
from finetune_trainer.digests import sha256

FILES, MANIFEST, CHECKPOINT = "files.json", "manifest.json", "checkpoint"


def describe(folder: Path) -> tuple[File, ...]:
    """Every file below a folder, sorted by path, links followed; files.json itself is left out."""
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return tuple(File(path=p, bytes=(folder / p).stat().st_size, sha256=sha256(folder / p)) for p in paths if p != FILES)


def files_json(files: Iterable[File]) -> bytes:
    """The content of files.json: canonical, so that its own hash stands for the folder."""
    listed = [file.model_dump(mode="json") for file in sorted(files, key=lambda f: f.path)]
    return json.dumps({"files": listed}, sort_keys=True, separators=(",", ":")).encode()


def parse_files(content: bytes) -> tuple[File, ...]:
    """The list in a files.json; raises KeyError or ValueError where it is not one."""
    return tuple(File.model_validate(entry) for entry in json.loads(content)["files"])


def folder_digest(files: Iterable[File]) -> str:
    """Digest of a folder: sha256:<hex> of its files.json."""
    return "sha256:" + hashlib.sha256(files_json(files)).hexdigest()
