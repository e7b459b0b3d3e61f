"""The artifact store's objects in an S3 bucket, by obstore. Credentials come from AWS_* environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import ExitCode, File
from finetune_trainer.failures import StepFailed, store_unavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSStore, RetryConfig, S3Config, S3Store

MIB = 1 << 20
PART_BYTES = 16 * MIB  # a part is held in memory; S3 allows 10 000 of them
MAX_PARTS = 9000
PARALLEL_FILES = 4
UNTRUSTED = (
    "the server's certificate is not trusted: set spec.storage.artifacts.caSecretRef to a Secret with that of its authority"
)
RETRIES: RetryConfig = {"max_retries": 8, "retry_timeout": timedelta(minutes=3)}


class S3Objects:
    """Objects below s3://bucket/prefix. write_new is one conditional PUT (If-None-Match: *)."""

    def __init__(self, uri: str, endpoint: str | None = None, region: str | None = None) -> None:
        self._uri = uri.rstrip("/")
        self._store = open_bucket(uri, endpoint, region)

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
        if target.is_file() and target.stat().st_size == file.bytes and _sha256(target) == file.sha256:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reported(path):
            download(self._store, path, target)
        if _sha256(target) != file.sha256:
            target.unlink()
            raise StepFailed(
                ExitCode.STORE_UNAVAILABLE, "ArtifactDamaged", f"{self._uri}/{path} has not the digest of its manifest"
            )

    @contextmanager
    def _reported(self, path: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        where = f"{self._uri}/{path}"
        try:
            yield
        except (BaseError, OSError) as error:
            if is_denied(error):
                raise StepFailed(
                    ExitCode.SOURCE_DENIED,
                    "StoreAccessDenied",
                    f"{where} was refused: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the Secret that"
                    " spec.storage.artifacts.secretRef names, and their rights on the bucket",
                ) from error
            if is_untrusted(error):
                raise StepFailed(ExitCode.BAD_CONFIG, "StoreNotTrusted", f"{where}: {UNTRUSTED}") from error
            if is_not_found(error):
                raise StepFailed(
                    ExitCode.BAD_CONFIG,
                    "StoreNotFound",
                    f"{where} was not found: check that the bucket in spec.storage.artifacts.uri exists",
                ) from error
            raise store_unavailable(where, error) from error


def open_bucket(uri: str, endpoint: str | None, region: str | None) -> S3Store | GCSStore:
    """A client for s3://bucket/prefix or gs://bucket/prefix; paths are relative to the prefix. Retries server errors for up
    to three minutes.

    S3: unset endpoint and region come from AWS_ENDPOINT_URL and AWS_REGION; AWS_CA_BUNDLE names more trusted certificates.
    Google: GOOGLE_SERVICE_ACCOUNT_KEY or GOOGLE_BEARER_TOKEN, else the pod's own identity; GOOGLE_BASE_URL is another server.
    """
    from obstore.store import GCSStore, S3Store

    scheme, _, path = uri.partition("://")
    bucket, _, prefix = path.partition("/")
    below = prefix.rstrip("/") or None
    if scheme == "gs":
        endpoint = os.environ.get("GOOGLE_BASE_URL")
        return GCSStore(bucket, prefix=below, client_options=_client(endpoint), retry_config=RETRIES)
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
    config: S3Config = {"region": region or os.environ.get("AWS_REGION") or "us-east-1"}
    if endpoint is not None:
        config["endpoint"] = endpoint
    return S3Store(bucket, prefix=below, config=config, client_options=_client(endpoint), retry_config=RETRIES)


def _client(endpoint: str | None) -> ClientConfig:
    client: ClientConfig = {"timeout": timedelta(minutes=10), "connect_timeout": timedelta(seconds=10)}
    if endpoint is not None and endpoint.startswith("http://"):
        client["allow_http"] = True
    bundle = os.environ.get("AWS_CA_BUNDLE")
    if bundle:
        client["root_certificate"] = Path(bundle).read_bytes()
    return client


# obstore gives an answer to a list request no exception of its own, so these look into its text as well.


def is_not_found(error: Exception) -> bool:
    """Whether object or bucket don't exist."""
    return isinstance(error, FileNotFoundError) or "<Code>NoSuchBucket</Code>" in str(error)


def is_denied(error: Exception) -> bool:
    """Whether the credentials are missing, wrong or not enough."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    known = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    return known or "status code: 403" in str(error) or "status code: 401" in str(error)


def is_untrusted(error: Exception) -> bool:
    """Whether nobody who is trusted has signed the server's certificate."""
    return "InvalidCertificate" in str(error)


def download(store: S3Store | GCSStore, path: str, target: Path) -> None:
    """Stream one object to a file; it has its name only when it is whole."""
    part = target.with_name(target.name + ".part")
    with part.open("wb") as stream:
        for chunk in store.get(path).stream(min_chunk_size=8 * MIB):
            stream.write(chunk)
    part.replace(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        digest = sha256()
        while chunk := stream.read(8 * MIB):
            digest.update(chunk)
        return digest.hexdigest()
