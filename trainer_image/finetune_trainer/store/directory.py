"""The artifact store's objects as files below a directory, as a claim is mounted."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune_trainer.contract.reports import File
from finetune_trainer.failures import store_unavailable


class DirectoryObjects:
    """Objects on a file system. Writes are durable (fsync) and appear whole; hard links make write_new atomic."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes | None:
        with _reported(self.root / path):
            try:
                return (self.root / path).read_bytes()
            except FileNotFoundError:
                return None

    def begin(self, path: str, length: int) -> bytes:
        with _reported(self.root / path), (self.root / path).open("rb") as stream:
            return stream.read(length)

    def sizes(self, prefix: str) -> dict[str, int]:
        folder = self.root / prefix
        with _reported(folder):
            return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}

    def children(self, prefix: str) -> list[str]:
        with _reported(self.root / prefix):
            try:
                return [p.name for p in (self.root / prefix).iterdir() if p.is_dir()]
            except FileNotFoundError:
                return []

    def write_file(self, path: str, source: Path) -> None:
        target = self.root / path
        with _reported(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            _sync(target)
            _sync(target.parent)

    def write_new(self, path: str, content: bytes) -> bool:
        with _reported(self.root / path), self._temporary(path, content) as temporary:
            try:
                os.link(temporary, self.root / path)
            except FileExistsError:
                return False
            _sync(temporary.parent)
            return True

    def overwrite(self, path: str, content: bytes) -> None:
        with _reported(self.root / path), self._temporary(path, content) as temporary:
            temporary.replace(self.root / path)
            _sync(temporary.parent)

    def fetch(self, prefix: str, files: Iterable[File], into: Path) -> Path:
        return self.root / prefix

    def delete(self, prefix: str) -> None:
        with _reported(self.root / prefix), suppress(FileNotFoundError):
            shutil.rmtree(self.root / prefix)

    @contextmanager
    def _temporary(self, path: str, content: bytes) -> Iterator[Path]:
        """A synced file beside `path` with this content; gone afterwards unless it was renamed."""
        parent = (self.root / path).parent
        parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                os.fchmod(descriptor, 0o644)  # serving pods read it as another user
                stream.flush()
                os.fsync(descriptor)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


@contextmanager
def _reported(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise store_unavailable(str(where), error) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
