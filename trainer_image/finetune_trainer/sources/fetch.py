"""Fetch a model's or a dataset's files from wherever they lie.

    hubs, buckets    downloaded to scratch; a file that is whole already is not fetched again
    https            one file, downloaded to scratch (https.py)
    mounted          read where it lies

All network calls go through one retry policy. What can't be had is a StepFailed whose reason names the subject:
ModelNotFound, DatasetAccessDenied, … and SourceUnavailable where a server didn't answer in time.
"""

from __future__ import annotations

import os
from pathlib import Path

from finetune_trainer.contract.places import Reach, mounted_path
from finetune_trainer.sources.bucket import _fetch_from_bucket
from finetune_trainer.sources.https import fetch_file
from finetune_trainer.sources.hub import _fetch_from_hub
from finetune_trainer.sources.source import Fetched, Listing, Source


def fetch(source: Source, into: Path, mounts: str, endpoint: str | None = None, region: str | None = None) -> Fetched:
    """The source's wanted files. `endpoint` and `region` are those of an S3 server, unless its Secret names others."""
    match source.place.reach:
        case Reach.HUB:
            return _fetch_from_hub(source, into)
        case Reach.HTTPS:
            return Fetched(into, (fetch_file(source, into),), "")
        case Reach.BUCKET:
            return _fetch_from_bucket(source, into, endpoint, region)
        case Reach.MOUNTED:
            return _find_mounted(source, mounts)


def _find_mounted(source: Source, mounts: str) -> Fetched:
    place = Path(str(mounted_path(source.uri, mounts)))

    def read(name: str) -> str:
        return (place / name).read_text(errors="replace")

    if place.is_file():
        source.check(Listing([place.name], [place.name], read))
        return Fetched(place.parent, (place.name,), "")
    if not place.is_dir():
        raise source.not_found(f"{source.uri}: nothing of that name in the {source.place.kind}; check the path after its name")
    try:
        # A ConfigMap's keys are links into a hidden folder, which is not the data twice.
        found = (p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())
        visible = [p for p in found if not any(part.startswith(".") for part in p.split("/"))]
    except PermissionError as error:
        raise source.denied(f"{source.uri} can't be read by user {os.getuid()}: {error.strerror}") from error
    return Fetched(place, tuple(source.chosen(visible, read)), "")
