"""The artifact store: what a step made, kept under the fingerprint of its inputs. A directory (claim) or a bucket.

    <root>/<kind>/<fingerprint>/manifest.json          the commit: written last, the first one wins
    <root>/<kind>/<fingerprint>/<attempt>/…            the files of one attempt, with files.json that names them all
    <root>/checkpoint/<fingerprint>/<step>/…           the same for training state, where the last one wins

Each attempt writes under its own name, so a pod on a lost node that goes on writing spoils nothing. Whoever reads goes
by manifest.json alone: what it doesn't name doesn't exist.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from finetune_trainer import environment
from finetune_trainer.contract import places
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.places import mounted_path
from finetune_trainer.contract.pod import Owner
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Check, File, Manifest, StepResult
from finetune_trainer.digests import sha256
from finetune_trainer.failures import StepFailed
from finetune_trainer.store.bucket import BucketObjects
from finetune_trainer.store.directory import DirectoryObjects
from finetune_trainer.store.files import CHECKPOINT, FILES, MANIFEST, describe, files_json, folder_digest, parse_files


class Objects(Protocol):
    """Where bytes lie, by path below one root. Each method raises StepFailed when the place doesn't answer."""

    def read(self, path: str) -> bytes | None:
        """Content, or None where nothing lies."""

    def begin(self, path: str, length: int) -> bytes:
        """The first bytes of an object that lies there."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of each object below prefix, by path relative to it."""

    def children(self, prefix: str) -> list[str]:
        """Names of the folders directly below prefix."""

    def write_file(self, path: str, source: Path) -> None:
        """Copy a local file; durable on return."""

    def write_new(self, path: str, content: bytes) -> bool:
        """Write only where nothing lies; False means that somebody was first."""

    def overwrite(self, path: str, content: bytes) -> None:
        """Write as a whole, whatever lies there."""

    def fetch(self, prefix: str, files: Iterable[File], into: Path) -> Path:
        """A local folder with these files, checked: the store's own (read-only) or `into`."""

    def delete(self, prefix: str) -> None:
        """Remove all below prefix; nothing there is fine."""


@dataclass(frozen=True)
class Provenance:
    """How an entry came about: the step that made it, of what, with which versions, and what was proven of it."""

    step: str
    inputs: dict[str, str]
    versions: dict[str, str]
    checks: tuple[Check, ...] = ()


class Store:
    """Entries and checkpoints over any Objects."""

    def __init__(self, objects: Objects, uri: str) -> None:
        self.objects = objects
        self.uri = uri.rstrip("/")

    # ── Entries ──

    def read(self, kind: str, fingerprint: str) -> Manifest | None:
        """The manifest of a finished step, or None where there is none, or it or a file of it is missing or cut short."""
        content = self.objects.read(f"{kind}/{fingerprint}/{MANIFEST}")
        try:
            manifest = Manifest.model_validate_json(content or b"")
        except ValidationError:
            return None
        there = self.objects.sizes(self.path(kind, manifest))
        whole = FILES in there and all(there.get(f.path) == f.bytes for f in manifest.files)
        return manifest if whole else None

    def path(self, kind: str, manifest: Manifest) -> str:
        """Where the committed files lie, below the store's root."""
        return f"{kind}/{manifest.fingerprint}/{manifest.prefix}"

    def fetch(self, kind: str, manifest: Manifest, into: Path) -> Path:
        """A local folder with the entry's files: the store's own, to be read only, or a checked download in `into`."""
        return self.objects.fetch(self.path(kind, manifest), manifest.files, into)

    def commit(
        self,
        kind: str,
        attempt: str,
        folder: Path,
        result: StepResult,
        made: Provenance,
    ) -> Manifest:
        """Keep `folder` under the result's fingerprint and return the manifest that counts: an earlier commit stays.

        Path, digest and bytes of result.artifact are filled in here, since only the store knows them.
        """
        fingerprint = result.fingerprint
        entry = f"{kind}/{fingerprint}"
        files = self._upload(f"{entry}/{attempt}", folder)
        if result.artifact is not None:
            where = {
                "path": f"{entry}/{attempt}",
                "digest": folder_digest(files),
                "bytes": sum(file.bytes for file in files),
            }
            result = result.model_copy(update={"artifact": result.artifact.model_copy(update=where)})
        manifest = Manifest(
            step=made.step,
            fingerprint=fingerprint,
            prefix=attempt,
            files=files,
            inputs=made.inputs,
            versions=made.versions,
            checks=made.checks,
            result=result,
        )
        if self.objects.write_new(f"{entry}/{MANIFEST}", _json(manifest)):
            return manifest
        earlier = self.read(kind, fingerprint)
        if earlier is None:  # its files were removed from outside: this attempt mends the entry
            self.objects.overwrite(f"{entry}/{MANIFEST}", _json(manifest))
            return manifest
        if earlier.prefix != attempt:
            self.objects.delete(f"{entry}/{attempt}")
        return earlier

    # ── Checkpoints ──

    def upload_checkpoint(self, fingerprint: str, step: int, folder: Path, attempt: str) -> tuple[File, ...]:
        """Bring one node's part of the training state after `step` optimizer steps; `commit_checkpoint` makes it count."""
        return self._bring(f"{CHECKPOINT}/{fingerprint}/{step}/{attempt}", folder)

    def commit_checkpoint(self, fingerprint: str, step: int, attempt: str, files: Iterable[File]) -> None:
        """Keep what the nodes brought; a checkpoint committed later for the same step takes its place."""
        place, listed = f"{CHECKPOINT}/{fingerprint}/{step}", tuple(files)
        self.objects.overwrite(f"{place}/{attempt}/{FILES}", files_json(listed))
        manifest = {"prefix": attempt, "digest": folder_digest(listed)}
        self.objects.overwrite(f"{place}/{MANIFEST}", json.dumps(manifest).encode())

    def checkpoints(self, fingerprint: str) -> list[int]:
        """Steps with a committed checkpoint, newest first."""
        place = f"{CHECKPOINT}/{fingerprint}"
        steps = sorted((int(n) for n in self.objects.children(place) if n.isdigit()), reverse=True)
        return [s for s in steps if self.objects.read(f"{place}/{s}/{MANIFEST}") is not None]

    def load_checkpoint(self, fingerprint: str, step: int, into: Path) -> Path:
        """Copy a checkpoint to `into`, every byte checked.

        Raises StepFailed with reason CheckpointDamaged where that fails: the caller takes the one before.
        """
        place = f"{CHECKPOINT}/{fingerprint}/{step}"
        damaged = StepFailed(StepReason.CheckpointDamaged, f"the checkpoint at {place} is not whole")
        try:
            manifest = json.loads(self.objects.read(f"{place}/{MANIFEST}") or b"{}")
            prefix = f"{place}/{manifest['prefix']}"
            files = parse_files(self.objects.read(f"{prefix}/{FILES}") or b"{}")
            if folder_digest(files) != manifest["digest"]:
                raise damaged
        except (ValueError, KeyError) as error:
            raise damaged from error
        there = self.objects.sizes(prefix)
        if any(there.get(file.path) != file.bytes for file in files):
            raise damaged
        source = self.objects.fetch(prefix, files, into)
        if source != into:
            shutil.copytree(source, into, dirs_exist_ok=True)
        if any(sha256(into / file.path) != file.sha256 for file in files):
            raise damaged
        return into

    def drop_checkpoints(self, fingerprint: str, keep: int, best: int | None = None) -> None:
        """Remove all checkpoints but the `keep` newest and that of step `best`. What is left of unfinished ones goes too, if it
        is older than those that are kept."""
        place = f"{CHECKPOINT}/{fingerprint}"
        kept = self.checkpoints(fingerprint)[:keep]
        for name in self.objects.children(place):
            if name.isdigit() and int(name) not in (*kept, best) and (not kept or int(name) < kept[0]):
                self.objects.delete(f"{place}/{name}")

    def _upload(self, prefix: str, folder: Path) -> tuple[File, ...]:
        self.objects.delete(prefix)  # left by a run of the same name that was cut off
        files = self._bring(prefix, folder)
        self.objects.overwrite(f"{prefix}/{FILES}", files_json(files))
        return files

    def _bring(self, prefix: str, folder: Path) -> tuple[File, ...]:
        files = describe(folder)
        for file in files:
            self.objects.write_file(f"{prefix}/{file.path}", folder / file.path)
        return files


def open_store(config: StoreConfig, mounts: str) -> Store:
    """The store of a run: a claim, mounted below `mounts`, or a bucket with the credentials of its Secret."""
    directory = mounted_path(config.uri, mounts)
    if directory is not None:
        return Store(DirectoryObjects(Path(directory)), config.uri)
    access = environment.access(Owner.STORE, places.of(config.uri))
    return Store(BucketObjects(config.uri, access, config.endpoint, config.region), config.uri)


# ── files.json ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _json(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()
