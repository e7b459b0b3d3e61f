"""Models and rows from a Hugging Face hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from finetune_trainer.contract.places import HF
from finetune_trainer.failures import StepFailed
from finetune_trainer.sources.retries import TRANSIENT, wait_asked_for, with_retries
from finetune_trainer.sources.source import Fetched, Source


def _fetch_from_hub(source: Source, into: Path) -> Fetched:
    """A snapshot at one commit. HF_ENDPOINT names another hub, HF_TOKEN opens gated and private repositories."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    repository, _, revision = source.uri.removeprefix(HF.prefix).partition("@")
    kind = "dataset" if source.subject == "Dataset" else "model"
    access = source.access
    api = HfApi(endpoint=access.hub_endpoint, token=access.hub_token)

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

    place = source.uri.removeprefix(HF.prefix)
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
        if status in (401, 403) and (source.access.hub_token or not isinstance(error, RepositoryNotFoundError)):
            return source.denied(f"the hub refused {place} (HTTP {status}): check that HF_TOKEN is valid and may read it")
        if isinstance(error, RepositoryNotFoundError):
            return source.not_found(f"the hub has no {place}, or it is private: check the name, or {secret}")
    if isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError):
        return 0.0
    return None
