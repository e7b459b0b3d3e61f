"""The artifact store's objects in a bucket, by obstore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.buckets import MIB, UNTRUSTED, download, is_denied, is_not_found, is_untrusted, open_bucket
from finetune_trainer.contract import places
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import File
from finetune_trainer.digests import sha256
from finetune_trainer.environment import Access
from finetune_trainer.failures import StepFailed, store_unavailable

PART_BYTES = 16 * MIB  # a part is held in memory; S3 allows 10 000 of them
MAX_PARTS = 9000
PARALLEL_FILES = 4


class BucketObjects:
    """Objects below the uri of a bucket. write_new is one conditional PUT (If-None-Match: *)."""

    def __init__(self, uri: str, access: Access, endpoint: str | None = None, region: str | None = None) -> None:
        self._uri = uri.rstrip("/")
        with self._reported(""):
            self._store = open_bucket(uri, access, endpoint, region)

    def read(self, path: str) -> bytes | None:
        with self._reported(path):
            try:
                return bytes(self._store.get(path).bytes())
            except FileNotFoundError:
                return None

    def sizes(self, prefix: str) -> dict[str, int]:
        with self._reported(prefix):
            found = self._store.list(prefix).collect()
            return {str(o["path"]).removeprefix(f"{prefix}/"): int(o["size"]) for o in found}

    def children(self, prefix: str) -> list[str]:
        with self._reported(prefix):
            found = self._store.list_with_delimiter(prefix)["common_prefixes"]
            return [str(p).rstrip("/").rpartition("/")[2] for p in found]

    def write_file(self, path: str, source: Path) -> None:
        part = max(PART_BYTES, source.stat().st_size // MAX_PARTS + 1)
        with self._reported(path):
            self._store.put(path, source, chunk_size=part, max_concurrency=4)

    def write_new(self, path: str, content: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._reported(path):
            try:
                self._store.put(path, content, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

    def overwrite(self, path: str, content: bytes) -> None:
        with self._reported(path):
            self._store.put(path, content, use_multipart=False)

    def fetch(self, prefix: str, files: Iterable[File], into: Path) -> Path:
        """Download to `into`; what lies there with the right hash is kept, so a download can be taken up again."""
        into.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            for _ in pool.map(lambda file: self._fetch_file(f"{prefix}/{file.path}", file, into / file.path), files):
                pass
        return into

    def delete(self, prefix: str) -> None:
        with self._reported(prefix):
            found = [str(o["path"]) for o in self._store.list(prefix).collect()]
            if found:
                self._store.delete(found)

    def _fetch_file(self, path: str, file: File, target: Path) -> None:
        if target.is_file() and target.stat().st_size == file.bytes and sha256(target) == file.sha256:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reported(path):
            download(self._store, path, target)
        if sha256(target) != file.sha256:
            target.unlink()
            raise StepFailed(StepReason.ArtifactDamaged, f"{self._uri}/{path} has not the digest of its manifest")

    @contextmanager
    def _reported(self, path: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        where = f"{self._uri}/{path}"
        try:
            yield
        except (BaseError, OSError) as error:
            if is_denied(error):
                raise StepFailed(
                    StepReason.StoreAccessDenied,
                    f"{where} was refused: check {' and '.join(places.of(where).keys)} in the Secret that"
                    " spec.storage.artifacts.secretRef names, and their rights on the bucket",
                ) from error
            if is_untrusted(error):
                raise StepFailed(StepReason.StoreNotTrusted, f"{where}: {UNTRUSTED}") from error
            if is_not_found(error):
                raise StepFailed(
                    StepReason.StoreNotFound,
                    f"{where} was not found: check that the bucket in spec.storage.artifacts.uri exists",
                ) from error
            raise store_unavailable(where, error) from error
