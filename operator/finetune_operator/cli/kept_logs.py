"""The logs that a job's attempts left in its artifact store, as far as whoever asks can read it: a bucket, or a folder.

Credentials are those of the Secret that the job names, where whoever asks may read it, else those of the environment.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.cli.logs import Kept, KeptPod
from finetune_operator.cli.reach import Reach
from finetune_operator.errors import ClusterError
from finetune_operator.finetunejob.run_config import run_config
from finetune_operator.meta import Object
from finetune_operator.names import run_of
from finetune_trainer.contract import kept_log, places
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.kept_log import PodEnd
from finetune_trainer.contract.places import Reach as Way

if TYPE_CHECKING:
    from obstore.store import RetryConfig

    from finetune_trainer.store.entries import Objects

MOUNTED = "--store reads it from a folder where the claim is mounted, or from a copy"
PATIENCE = timedelta(seconds=10)  # with a bucket; a person waits


class KeptLogs:
    """Opened when the first of them is asked for. `folder` has what the store has, in its place."""

    def __init__(self, reach: Reach, job: Object, folder: Path | None = None) -> None:
        self._reach, self._folder = reach, folder
        self._job = FineTuneJob.model_validate(job)
        self._store = run_config(self._job).store
        self._objects: Objects | None = None
        self._unread = ""

    async def of(self, step: str, attempt: int) -> Kept:
        """What lies there of an attempt, or why that can't be read from here."""
        from finetune_trainer.failures import StepFailed

        meta, run = self._job.metadata, run_of(self._job.status.run or "")
        place = kept_log.folder(meta.namespace, meta.name, run, step, attempt)
        where = f"{self._folder or self._store.uri}/{place}"
        if self._objects is None and not self._unread:
            await self._open()
        if self._objects is None:
            return Kept(where, unread=self._unread)
        try:
            return Kept(where, await asyncio.to_thread(_read, self._objects, place))
        except StepFailed as failure:
            self._objects, self._unread = None, failure.message
            return Kept(where, unread=self._unread)

    async def _open(self) -> None:
        from finetune_trainer.failures import StepFailed
        from finetune_trainer.store.directory import DirectoryObjects

        if self._folder is not None:
            self._objects = DirectoryObjects(self._folder)
        elif places.of(self._store.uri).reach is not Way.BUCKET:
            self._unread = MOUNTED
        else:
            try:
                self._objects = _bucket(self._store, await self._secret())
            except StepFailed as failure:
                self._unread = failure.message

    async def _secret(self) -> dict[str, str]:
        """What the store's Secret says; nothing where there is none, or where it is not for whoever asks."""
        ref = self._job.spec.storage.artifacts.secret_ref
        try:
            found = None if ref is None else await self._reach.get("Secret", ref.name)
        except ClusterError:
            return {}
        held = {} if found is None else found.get("data") or {}
        return {key: base64.b64decode(value).decode(errors="replace").rstrip("\n") for key, value in held.items()}


def _bucket(store: StoreConfig, secret: Mapping[str, str]) -> Objects:
    from finetune_trainer import environment
    from finetune_trainer.store.bucket import BucketObjects

    of_place = {k: v for k, v in secret.items() if k.startswith(places.of(store.uri).variables)}
    access = replace(environment.access(), secret=of_place)
    once: RetryConfig = {"max_retries": 1, "retry_timeout": PATIENCE}
    endpoint, region = store.endpoint or access.own_s3_endpoint, store.region or access.own_s3_region
    return BucketObjects(store.uri, access, endpoint, region, once)


def _read(objects: Objects, place: str) -> tuple[KeptPod, ...]:
    names = {name.removesuffix(kept_log.LOG) for name in objects.sizes(place) if name.endswith(kept_log.LOG)}
    return tuple(_pod(objects, f"{place}/{name}") for name in sorted(names, key=lambda name: (len(name), name)))


def _pod(objects: Objects, path: str) -> KeptPod:
    text = objects.read(f"{path}{kept_log.LOG}") or b""
    try:
        end: PodEnd | None = PodEnd.model_validate_json(objects.read(f"{path}{kept_log.END}") or b"")
    except ValidationError:
        end = None
    return KeptPod(text.decode(errors="replace"), end)
