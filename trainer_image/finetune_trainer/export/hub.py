"""Publish to a model hub: one commit with what differs, then every file's digest as the hub tells it.

One artifact lies at the repository's root, where from_pretrained looks for it; several lie in folders of their names.
files.json beside each names its files: what an earlier commit of ours left there and this one lacks is removed, what
somebody else put there stays. HF_ENDPOINT names another hub than the public one, HF_TOKEN says who writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from finetune_trainer import environment
from finetune_trainer.contract.artifacts import Publish
from finetune_trainer.contract.places import HF
from finetune_trainer.contract.pod import Owner
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Manifest
from finetune_trainer.digests import sha256
from finetune_trainer.failures import StepFailed, first_line
from finetune_trainer.sources.retries import TRANSIENT, wait_asked_for, with_retries
from finetune_trainer.store.files import FILES, files_json, parse_files

MAIN = "main"
MESSAGE = "Published by finetune-operator"


@dataclass(frozen=True)
class Place:
    """A branch of a repository. `field` is the part of the spec that names it."""

    repository: str
    branch: str
    private: bool
    field: str

    @property
    def name(self) -> str:
        return self.repository if self.branch == MAIN else f"{self.repository}@{self.branch}"


def publish(target: Publish, field: str, artifacts: Mapping[str, tuple[Manifest, Path]], scratch: Path) -> str:
    """Bring the artifacts to the hub unless they are there; returns the commit that holds them.

    Raises StepFailed: PublishDenied, PublishRefused, PublishDamaged, or SourceUnavailable when the hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    repository, _, branch = target.uri.removeprefix(HF.prefix).partition("@")
    place = Place(repository, branch or MAIN, target.private, field)
    access = environment.access(Owner.PUBLISH, HF)
    api = HfApi(endpoint=access.hub_endpoint, token=access.hub_token)
    files = _laid_out(artifacts, scratch)

    def reached(action: Callable[[], str]) -> str:
        return with_retries(action, partial(_meaning, place), partial(_unavailable, place))

    reached(partial(_open, api, place))
    commit = reached(partial(_commit, api, place, files, scratch))
    return reached(partial(_prove, api, place, files, commit))


def _laid_out(artifacts: Mapping[str, tuple[Manifest, Path]], scratch: Path) -> dict[str, Path]:
    """Local file by its path in the repository."""
    files: dict[str, Path] = {}
    for name, (manifest, folder) in artifacts.items():
        below = f"{name}/" if len(artifacts) > 1 else ""
        listing = scratch / "listings" / name / FILES
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_bytes(files_json(manifest.files))
        files |= {f"{below}{file.path}": folder / file.path for file in manifest.files} | {f"{below}{FILES}": listing}
    return files


def _open(api: Any, place: Place) -> str:
    """Make repository and branch where they are missing."""
    api.create_repo(place.repository, private=place.private, exist_ok=True)
    found = api.repo_info(place.repository)
    if place.private and not found.private:
        raise StepFailed(
            StepReason.PublishRefused,
            f"{place.field}.uri: {place.repository} is public; set {place.field}.private to false if everybody may have the"
            " model, or name another repository",
        )
    if place.branch != MAIN:
        api.create_branch(place.repository, branch=place.branch, exist_ok=True)
    return str(found.sha)


def _commit(api: Any, place: Place, files: Mapping[str, Path], scratch: Path) -> str:
    """Write what differs and remove what is ours and no more; returns the commit, the branch's own where nothing does."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = _tree(api, place.repository, place.branch)
    changed = [path for path, file in files.items() if not _same(there.get(path), file)]
    gone = sorted(_ours(api, place, [p for p in changed if p in there], scratch) & there.keys() - files.keys())
    if not changed and not gone:
        return str(api.repo_info(place.repository, revision=place.branch).sha)
    operations = [
        *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(files[path])) for path in changed),
        *(CommitOperationDelete(path_in_repo=path) for path in gone),
    ]
    made = api.create_commit(
        place.repository, operations, commit_message="Published by finetune-operator", revision=place.branch
    )
    return str(made.oid)


def _ours(api: Any, place: Place, paths: list[str], scratch: Path) -> set[str]:
    """What the lists among these paths name: the files of an earlier commit of ours."""
    found: set[str] = set()
    for path in paths:
        if path.rpartition("/")[2] != FILES:
            continue
        copy = api.hf_hub_download(
            place.repository, path, revision=place.branch, local_dir=scratch / "earlier", force_download=True
        )
        try:
            found |= {path.removesuffix(FILES) + file.path for file in parse_files(Path(copy).read_bytes())}
        except (KeyError, ValueError):
            continue  # somebody else's file of that name: it is replaced, and nothing more
    return found


def _prove(api: Any, place: Place, files: Mapping[str, Path], commit: str) -> str:
    """Compare every file's digest with the one that the commit has."""
    there = _tree(api, place.repository, commit)
    wrong = [path for path, file in files.items() if not _same(there.get(path), file)]
    if wrong:
        message = f"{place.name}: {wrong[0]} has another digest on the hub than it was sent with ({len(wrong)} of {len(files)})"
        raise StepFailed(StepReason.PublishDamaged, message)
    return commit


def _tree(api: Any, repository: str, revision: str) -> dict[str, Any]:
    """The hub's entry of each file by path."""
    entries = api.list_repo_tree(repository, recursive=True, revision=revision)
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}


def _same(entry: Any, file: Path) -> bool:
    """Whether the hub's entry is this file: large ones go by SHA-256, small ones by Git's name for their content."""
    if entry is None or entry.size != file.stat().st_size:
        return False
    return bool(entry.lfs.sha256 == sha256(file) if entry.lfs else entry.blob_id == _git_blob(file))


def _git_blob(file: Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _meaning(place: Place, error: BaseException) -> StepFailed | float | None:
    """What an exception of the hub's client means: a failure, seconds to wait before another try, or None: unknown."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(error, StepFailed):
        return error
    if isinstance(error, HFValidationError):
        return _refused(place, "this is no repository's name: write hf://organization/name[@branch]")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in TRANSIENT:
            return wait_asked_for(error.response.headers.get("Retry-After"))
        if status in (401, 403, 404):
            return StepFailed(
                StepReason.PublishDenied,
                f"the hub does not let us write {place.name} (HTTP {status}): set {place.field}.secretRef to a Secret with the"
                " key HF_TOKEN, a token with write access to it",
            )
        return _refused(place, first_line(error))
    if isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError):
        return 0.0
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of one file among several
        return _meaning(place, error.__cause__)
    return _refused(place, first_line(error)) if isinstance(error, ValueError) else None


def _refused(place: Place, why: str) -> StepFailed:
    return StepFailed(StepReason.PublishRefused, f"{place.field}.uri: the hub refused {place.name}: {why}")


def _unavailable(place: Place, error: BaseException) -> StepFailed:
    text = f"the hub did not answer while {place.name} was published: {first_line(error)}"
    return StepFailed(StepReason.SourceUnavailable, text)
