"""Fetch a model's or a dataset's files from wherever they lie.

    hf, s3, gs        downloaded to scratch; a file that is whole already is not fetched again
    https             one file, downloaded to scratch (web.py)
    pvc, configmap    read where they are mounted

All network calls go through one retry policy. What can't be had is a StepFailed whose reason names the subject:
ModelNotFound, DatasetAccessDenied, … and SourceUnavailable where a server didn't answer in time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from finetune_trainer.contract import ExitCode
from finetune_trainer.failures import StepFailed, first_line
from finetune_trainer.pipeline import mounted_path
from finetune_trainer.retries import TRANSIENT, wait_asked_for, with_retries
from finetune_trainer.web import fetch_file

CARD = "README.md"


@dataclass(frozen=True)
class Source:
    """What is fetched and how to speak of it: subject is Model, Dataset or TaskFiles, field what names it in the spec."""

    uri: str
    subject: str
    field: str
    wanted: tuple[str, ...]  # glob patterns of paths below the uri
    deep: bool = True  # whether folders below it are looked into
    check: Callable[[list[str]], None] = lambda _: None  # refuses by StepFailed, before anything is downloaded
    narrow: Callable[[list[str], str], list[str]] | None = None  # of the wanted paths, by what README.md says

    @property
    def scheme(self) -> str:
        return self.uri.partition("://")[0]

    def chosen(self, paths: Iterable[str], read: Callable[[str], str]) -> list[str]:
        """Those of the paths that are wanted, sorted; `read` gives the text of a small file among them.

        Raises StepFailed where the source's check refuses them.
        """
        reached = [p for p in paths if self.deep or "/" not in p]
        names = sorted(p for p in reached if any(matches(p, pattern) for pattern in self.wanted))
        if self.narrow is not None and names:
            names = self.narrow(names, read(CARD) if CARD in reached else "")
        self.check(names)
        return names

    @property
    def secret(self) -> str:
        """The field that names the Secret with the credentials."""
        return f"{self.field.removesuffix('.uri')}.secretRef" if self.subject == "Model" else "spec.dataset.secretRef"

    def not_found(self, detail: str) -> StepFailed:
        return StepFailed(ExitCode.SOURCE_NOT_FOUND, f"{self.subject}NotFound", f"{self.field}: {detail}")

    def denied(self, detail: str) -> StepFailed:
        return StepFailed(ExitCode.SOURCE_DENIED, f"{self.subject}AccessDenied", f"{self.field}: {detail}")

    def unavailable(self, error: BaseException) -> StepFailed:
        text = f"{self.uri} did not answer: {first_line(error)}"
        return StepFailed(ExitCode.SOURCE_UNAVAILABLE, "SourceUnavailable", text)


@dataclass(frozen=True)
class Fetched:
    """Files of a source on this machine: paths are relative to `folder`."""

    folder: Path
    files: tuple[str, ...]
    revision: str  # the hub's commit; "" where the source has none


def matches(path: str, pattern: str) -> bool:
    """Whether a relative path fits a glob pattern; without a slash the pattern stands for a name in any folder."""
    if "/" not in pattern:
        return fnmatch(path.rpartition("/")[2], pattern)
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)


def fetch(source: Source, into: Path, mounts: str, endpoint: str | None = None, region: str | None = None) -> Fetched:
    """The source's wanted files. `endpoint` and `region` are those of the S3 server."""
    if source.scheme == "hf":
        return _fetch_from_hub(source, into)
    if source.scheme == "https":
        return Fetched(into, (fetch_file(source, into),), "")
    if source.scheme in ("s3", "gs"):
        return _fetch_from_bucket(source, into, endpoint, region)
    return _find_mounted(source, mounts)


def _find_mounted(source: Source, mounts: str) -> Fetched:
    place = Path(str(mounted_path(source.uri, mounts)))
    if place.is_file():
        source.check([place.name])
        return Fetched(place.parent, (place.name,), "")
    if not place.is_dir():
        kind = {"pvc": "claim", "configmap": "ConfigMap"}[source.scheme]
        raise source.not_found(f"{source.uri}: nothing of that name in the {kind}; check the path after its name")
    try:
        # A ConfigMap's keys are links into a hidden folder, which is not the data twice.
        found = (p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())
        visible = [p for p in found if not any(part.startswith(".") for part in p.split("/"))]
    except PermissionError as error:
        raise source.denied(f"{source.uri} can't be read by user {os.getuid()}: {error.strerror}") from error
    return Fetched(place, tuple(source.chosen(visible, lambda name: (place / name).read_text(errors="replace"))), "")


# ── The hub ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fetch_from_hub(source: Source, into: Path) -> Fetched:
    """A snapshot at one commit. HF_ENDPOINT names another hub, HF_TOKEN opens gated and private repositories."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    repository, _, revision = source.uri.removeprefix("hf://").partition("@")
    kind = "dataset" if source.subject == "Dataset" else "model"
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"))

    def describe() -> tuple[str, list[str]]:
        found = api.repo_info(repository, repo_type=kind, revision=revision or None, timeout=30)
        assert found.sha is not None  # the hub names the commit of every repository
        return found.sha, api.list_repo_files(repository, repo_type=kind, revision=found.sha)

    def download() -> str:
        return snapshot_download(
            repository, repo_type=kind, revision=commit, local_dir=into, allow_patterns=files, max_workers=4,
            endpoint=api.endpoint, token=api.token, etag_timeout=30,
        )  # fmt: skip

    def read(name: str) -> str:
        fetched = with_retries(partial(fetch_one, name), meaning, source.unavailable)
        return Path(fetched).read_text(errors="replace")

    def fetch_one(name: str) -> str:
        return hf_hub_download(
            repository, name, repo_type=kind, revision=commit, local_dir=into, endpoint=api.endpoint, token=api.token
        )

    meaning = partial(_meaning_at_hub, source)
    commit, paths = with_retries(describe, meaning, source.unavailable)
    files = source.chosen(paths, read)
    if files:
        with_retries(download, meaning, source.unavailable)
    return Fetched(into, tuple(files), commit)


def _meaning_at_hub(source: Source, error: Exception) -> StepFailed | float | None:
    """What an exception of the hub's client means: a failure, seconds to wait before another try, or None: unknown."""
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place = source.uri.removeprefix("hf://")
    secret = f"set {source.secret} to a Secret with the key HF_TOKEN"
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _meaning_at_hub(source, error.__cause__)
    if isinstance(error, GatedRepoError):
        return source.denied(f"{place} is gated: accept its terms on the hub and {secret} of an account that was let in")
    if isinstance(error, RevisionNotFoundError):
        return source.not_found(f"{place}: the repository has no such revision; check what follows the @")
    if isinstance(error, HFValidationError):
        return source.not_found(f"{place} is no repository's name: write hf://organization/name[@revision]")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in TRANSIENT:
            return wait_asked_for(error.response.headers.get("Retry-After"))
        if status in (401, 403) and (os.environ.get("HF_TOKEN") or not isinstance(error, RepositoryNotFoundError)):
            return source.denied(f"the hub refused {place} (HTTP {status}): check that HF_TOKEN is valid and may read it")
        if isinstance(error, RepositoryNotFoundError):
            return source.not_found(f"the hub has no {place}, or it is private: check the name, or {secret}")
    if isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError):
        return 0.0
    return None


# ── Buckets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fetch_from_bucket(source: Source, into: Path, endpoint: str | None, region: str | None) -> Fetched:
    """Objects below a prefix, or the one object of that name."""
    from finetune_trainer.s3 import download, open_bucket

    bucket, _, prefix = source.uri.partition("://")[2].rstrip("/").partition("/")
    store = open_bucket(f"{source.scheme}://{bucket}", endpoint, region)
    meaning = partial(_meaning_at_bucket, source)

    def describe() -> dict[str, int]:
        found = {str(o["path"]): int(o["size"]) for o in store.list(prefix or None).collect()}
        if not found and prefix:
            head = store.head(prefix)
            return {str(head["path"]): int(head["size"])}
        return found

    sizes = with_retries(describe, meaning, source.unavailable)
    above = f"{prefix}/" if prefix and prefix not in sizes else prefix.rpartition("/")[0] + "/" if "/" in prefix else ""
    names = {path.removeprefix(above): path for path in sizes}
    if not sizes:
        raise source.not_found(f"nothing lies at {source.uri}")

    def read(name: str) -> str:
        content = with_retries(lambda: bytes(store.get(names[name]).bytes()), meaning, source.unavailable)
        return content.decode(errors="replace")

    files = [next(iter(names))] if prefix in sizes else source.chosen(names, read)
    for name in files:
        target = into / name
        if not target.is_file() or target.stat().st_size != sizes[names[name]]:
            target.parent.mkdir(parents=True, exist_ok=True)
            with_retries(partial(download, store, names[name], target), meaning, source.unavailable)
    return Fetched(into, tuple(files), "")


def _meaning_at_bucket(source: Source, error: Exception) -> StepFailed | float | None:
    from obstore.exceptions import BaseError

    from finetune_trainer.s3 import UNTRUSTED, is_denied, is_not_found, is_untrusted

    if is_untrusted(error):
        return source.denied(f"{source.uri}: {UNTRUSTED}")
    if is_not_found(error):
        return source.not_found(f"nothing lies at {source.uri}: check bucket and path")
    if "<Code>AuthorizationHeaderMalformed</Code>" in str(error):
        return source.denied(f"{source.uri}: the bucket is in another region: set spec.storage.artifacts.region or AWS_REGION")
    if is_denied(error):
        keys = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_SERVICE_ACCOUNT_KEY"}[source.scheme]
        return source.denied(f"{source.uri} was refused: check {keys} in {source.secret}")
    return 0.0 if isinstance(error, BaseError | ConnectionError | TimeoutError) else None
