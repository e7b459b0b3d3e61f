"""Digests of files: SHA-256, of one or of several as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def over(digests: Iterable[str]) -> str:
    """One digest, sha256:<hex>, over the digests of several files."""
    return "sha256:" + hashlib.sha256("".join(digests).encode()).hexdigest()
