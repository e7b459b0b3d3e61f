"""The artifact store's objects in a bucket, by obstore."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from finetune_trainer.buckets import MIB, RETRIES, UNTRUSTED, download, is_denied, is_not_found, is_untrusted, open_bucket
from finetune_trainer.contract import places
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import File
from finetune_trainer.digests import sha256
from finetune_trainer.environment import Access
from finetune_trainer.failures import StepFailed, store_unavailable

PART_BYTES = 16 * MIB  # a part is held in memory; S3 allows 10 000 of them
MAX_PARTS = 9000
PARALLEL_FILES = 4
TRIES = 2  # the client itself repeats what a server refuses for a moment, but not what breaks off in the middle
PASSING = (StepReason.StoreUnavailable, StepReason.StoreNotFound)  # an upload whose last answer was lost is not found, too

if TYPE_CHECKING:
    from obstore.store import RetryConfig

T = TypeVar("T")


class BucketObjects:
    """Objects below the uri of a bucket. write_new is one conditional PUT (If-None-Match: *)."""

    def __init__(
        self,
        uri: str,
        access: Access,
        endpoint: str | None = None,
        region: str | None = None,
        retries: RetryConfig = RETRIES,
    ) -> None:
        self._uri = uri.rstrip("/")
        self._store = self._asked("", lambda: open_bucket(uri, access, endpoint, region, retries))

    def read(self, path: str) -> bytes | None:
        def ask() -> bytes | None:
            try:
                return bytes(self._store.get(path).bytes())
            except FileNotFoundError:
                return None

        return self._asked(path, ask)

    def begin(self, path: str, length: int) -> bytes:
        return self._asked(path, lambda: bytes(self._store.get_range(path, start=0, length=length)))

    def sizes(self, prefix: str) -> dict[str, int]:
        found = self._asked(prefix, lambda: self._store.list(prefix).collect())
        return {str(o["path"]).removeprefix(f"{prefix}/"): int(o["size"]) for o in found}

    def children(self, prefix: str) -> list[str]:
        found = self._asked(prefix, lambda: self._store.list_with_delimiter(prefix)["common_prefixes"])
        return [str(p).rstrip("/").rpartition("/")[2] for p in found]

    def write_file(self, path: str, source: Path) -> None:
        part = max(PART_BYTES, source.stat().st_size // MAX_PARTS + 1)
        self._asked(path, lambda: self._store.put(path, source, chunk_size=part, max_concurrency=4))

    def write_new(self, path: str, content: bytes) -> bool:
        def ask() -> bool:
            try:
                self._store.put(path, content, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return self.read(path) == content  # ours, where the answer to the first try was lost
            return True

        return self._asked(path, ask)

    def overwrite(self, path: str, content: bytes) -> None:
        self._asked(path, lambda: self._store.put(path, content, use_multipart=False))

    def fetch(self, prefix: str, files: Iterable[File], into: Path) -> Path:
        """Download to `into`; what lies there with the right hash is kept, so a download can be taken up again."""
        into.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            for _ in pool.map(lambda file: self._fetch_file(f"{prefix}/{file.path}", file, into / file.path), files):
                pass
        return into

    def delete(self, prefix: str) -> None:
        if found := [f"{prefix}/{name}" for name in self.sizes(prefix)]:
            self._asked(prefix, lambda: self._store.delete(found))

    def _fetch_file(self, path: str, file: File, target: Path) -> None:
        if target.is_file() and target.stat().st_size == file.bytes and sha256(target) == file.sha256:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        self._asked(path, lambda: download(self._store, path, target))
        if sha256(target) != file.sha256:
            target.unlink()
            raise StepFailed(StepReason.ArtifactDamaged, f"{self._uri}/{path} has not the digest of its manifest")

    def _asked(self, path: str, ask: Callable[[], T]) -> T:
        """What the server answers; asked once more where an answer broke off. Raises StepFailed."""
        for left in reversed(range(TRIES)):
            try:
                return ask()
            except (BaseError, OSError) as error:
                failed = _failure(f"{self._uri}/{path}", error)
                if left == 0 or failed.reason not in PASSING:
                    raise failed from error
        raise AssertionError("the last try returns or raises")


def _failure(where: str, error: Exception) -> StepFailed:
    if is_denied(error):
        return StepFailed(
            StepReason.StoreAccessDenied,
            f"{where} was refused: check {' and '.join(places.of(where).keys)} in the Secret that"
            " spec.storage.artifacts.secretRef names, and their rights on the bucket",
        )
    if is_untrusted(error):
        return StepFailed(StepReason.StoreNotTrusted, f"{where}: {UNTRUSTED}")
    if is_not_found(error):
        return StepFailed(
            StepReason.StoreNotFound,
            f"{where} was not found: check that the bucket in spec.storage.artifacts.uri exists",
        )
    return store_unavailable(where, error)
