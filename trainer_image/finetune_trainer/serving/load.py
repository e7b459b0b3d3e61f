"""Make a model folder ready for an engine, and refuse one that is not what it should be. The serving pods' first container.

    python -m finetune_trainer.serving.load --uri URI --target DIR [--digest sha256:…] [--gguf]

A claim is mounted and read where it lies; a bucket is downloaded to DIR/files. Then DIR/model leads to the folder and, with
--gguf, DIR/model.gguf to its one GGUF file, so that an engine's command line needs no names of files. With a digest,
every byte is read and checked: a replaced or damaged file is never served.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from finetune_trainer import environment
from finetune_trainer.buckets import Bucket, download, open_bucket
from finetune_trainer.contract import places
from finetune_trainer.contract.places import mounted_path
from finetune_trainer.contract.pod import Owner
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import File
from finetune_trainer.digests import sha256
from finetune_trainer.failures import StepFailed
from finetune_trainer.store.bucket import BucketObjects
from finetune_trainer.store.files import FILES, folder_digest, parse_files
from finetune_trainer.termination import finish

PARALLEL_FILES = 4


def main(arguments: list[str] | None = None) -> int:
    """Load as the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.serving.load", description=__doc__.splitlines()[0])
    parser.add_argument("--uri", required=True, help=places.forms(places.Use.SERVE))
    parser.add_argument("--target", type=Path, required=True, help="folder that gets the links, and what is downloaded")
    parser.add_argument("--digest", help="digest of the folder's files.json; without it files are not checked")
    parser.add_argument("--endpoint", help="URL of an S3-compatible server")
    parser.add_argument("--region", help="region of the bucket")
    parser.add_argument("--gguf", action="store_true", help="the engine takes one GGUF file")
    return finish(lambda: load(**vars(parser.parse_args(arguments))))


def load(uri: str, target: Path, digest: str | None, endpoint: str | None, region: str | None, *, gguf: bool = False) -> None:
    """Raises StepFailed where the folder is missing, damaged, or nothing that the engine can read."""
    started = time.monotonic()
    mounted = mounted_path(uri, environment.read().mounts)
    if mounted is not None:
        folder = Path(mounted)
        if not folder.is_dir():
            raise not_found(uri)
    else:
        folder = fetch(uri, target / "files", digest, endpoint, region)
    if digest is not None:
        check_files(folder, uri, digest)
    link(target / "model", folder)
    if gguf:
        link(target / "model.gguf", gguf_file(folder, uri))
    elif not (folder / "config.json").is_file():
        raise StepFailed(StepReason.NotAModel, f"{uri} holds no config.json: spec.model must name a model folder")
    checked = "checked" if digest is not None else "not checked: spec.model.digest is unset"
    print(f"{uri} is ready after {time.monotonic() - started:.1f} s, {checked}", flush=True)


# ── Checking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_files(folder: Path, uri: str, digest: str) -> None:
    """Every file that files.json names, by size first, so that a cut file is told at once, then by its SHA-256."""
    listed = folder / FILES
    if not listed.is_file():
        raise _damaged(uri, f"it has no {FILES}; was the upload cut short?")
    files = _listed(listed.read_bytes(), uri, digest)
    for file in files:
        path = folder / file.path
        found = path.stat().st_size if path.is_file() else None
        if found != file.bytes:
            raise _damaged(uri, f"{file.path} has {'no' if found is None else found} bytes instead of {file.bytes}")
    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        for file, found_hash in zip(files, pool.map(lambda f: sha256(folder / f.path), files), strict=True):
            if found_hash != file.sha256:
                raise _damaged(uri, f"{file.path} was changed: its SHA-256 is {found_hash}")


def _listed(content: bytes, uri: str, digest: str | None) -> tuple[File, ...]:
    """The files of a files.json with this digest. Their paths never lead out of the folder."""
    try:
        files = parse_files(content)
    except (ValueError, KeyError) as error:
        raise _damaged(uri, f"its {FILES} can't be read") from error
    if digest is not None and (found := folder_digest(files)) != digest:
        raise _damaged(uri, f"it holds another model: its digest is {found}, and {digest} was asked for")
    for file in files:
        if (path := PurePosixPath(file.path)).is_absolute() or ".." in path.parts:
            raise _damaged(uri, f"its {FILES} names {file.path}, which lies outside")
    return files


def gguf_file(folder: Path, uri: str) -> Path:
    """The only GGUF file in a folder."""
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        text = f"{uri} holds {len(found)} GGUF files; LlamaCpp and Ollama serve a folder with exactly one"
        raise StepFailed(StepReason.NotAModel, text)
    return found[0]


def link(path: Path, target: Path) -> None:
    """A symbolic link, put in place of an earlier one: the container may be a restarted one."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# ── Buckets ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def fetch(uri: str, into: Path, digest: str | None, endpoint: str | None, region: str | None) -> Path:
    """Download a folder. What an earlier attempt left behind is kept where its SHA-256 is known and right."""
    root, _, prefix = uri.rstrip("/").rpartition("/")
    if root.endswith(":/"):
        raise StepFailed(StepReason.InvalidSpec, f"{uri} names a bucket; spec.model.uri needs a path in it")
    access = environment.access(Owner.MODEL, places.of(uri))
    objects = BucketObjects(root, access, endpoint, region)
    try:
        content = objects.read(f"{prefix}/{FILES}")
        if content is not None:
            folder = objects.fetch(prefix, _listed(content, uri, digest), into)
            (folder / FILES).write_bytes(content)
            return folder
        if digest is not None:
            raise _damaged(uri, f"it has no {FILES}; was the upload cut short?")
        if not (there := objects.sizes(prefix)):
            raise not_found(uri)
        return _download(open_bucket(uri, access, endpoint, region), there, into)
    except StepFailed as error:
        raise _of_the_spec(uri, error) from error


def _download(bucket: Bucket, paths: Iterable[str], into: Path) -> Path:
    for path in paths:
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        download(bucket, path, into / path)
    return into


def _of_the_spec(uri: str, error: StepFailed) -> StepFailed:
    """The store's errors in the words of a ModelServe, which has no artifact store."""
    if error.reason is StepReason.StoreAccessDenied:
        text = (
            f"{uri} was refused: check {' and '.join(places.of(uri).keys)} in the Secret that"
            " spec.model.secretRef names, and their rights on the bucket"
        )
        return StepFailed(StepReason.ModelAccessDenied, text)
    if error.reason is StepReason.StoreNotTrusted:
        return StepFailed(error.reason, error.message.replace("spec.storage.artifacts.", "spec.model."))
    return not_found(uri) if error.reason is StepReason.StoreNotFound else error


def not_found(uri: str) -> StepFailed:
    return StepFailed(StepReason.ModelNotFound, f"there is no folder {uri}; correct spec.model.uri")


def _damaged(uri: str, what: str) -> StepFailed:
    return StepFailed(StepReason.ModelDamaged, f"{uri} is not what was made: {what}")


if __name__ == "__main__":
    sys.exit(main())
