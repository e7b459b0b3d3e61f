"""The entry of a model in the store: fetched and checked once, or looked at again where it is mounted."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from finetune_trainer.context import Context
from finetune_trainer.contract import pipeline
from finetune_trainer.contract.fields import Model
from finetune_trainer.contract.places import mounted_path
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import File, Manifest, StepResult
from finetune_trainer.digests import sha256
from finetune_trainer.failures import StepFailed
from finetune_trainer.inputs import MODEL
from finetune_trainer.model import pickles, weights
from finetune_trainer.sources.fetch import fetch
from finetune_trainer.sources.source import Fetched, Source
from finetune_trainer.store.files import files_json, folder_digest, parse_files

SOURCE = "source.json"  # in the entry of a mounted model: its files with their digests when it was first seen
WATCH_SECONDS = 5.0


def model_entry(context: Context, model: Model, field: str) -> Manifest:
    """The committed model entry, made now where it is missing; a mounted model must still be what it was."""
    fingerprint = pipeline.model_fingerprint(model)
    known = context.store.read(MODEL, fingerprint)
    mounted = mounted_path(model.uri, context.pod.mounts)
    if known is not None:
        if mounted is not None:
            _check_unchanged(context, known, Path(mounted), field)
        return known

    pickled = model.weights == pipeline.PICKLE
    wanted = weights.WANTED_PICKLED if pickled else weights.WANTED
    check = partial(weights.check_names, pickled=pickled, mounted=mounted is not None)
    source = Source(model.uri, "Model", f"{field}.uri", wanted, deep=False, check=check)
    download = context.scratch / fingerprint
    store = context.run.store
    with watching(context, "fetching the model", download):
        fetched = fetch(source, download, context.pod.mounts, store.endpoint, store.region)
    context.progress("checking the model")
    folder, files = fetched.folder, (found := _listed(fetched.folder, fetched.files))
    if pickled:
        folder = _without_pickles(context, fetched, mounted=mounted is not None)
        files = _listed(folder, tuple(_names(folder)))
    facts = weights.facts(folder, files, fetched.revision or folder_digest(found))
    if mounted is None:
        _drop_unlisted(folder, files)
    elif not pickled:  # the files stay where they are
        folder = context.scratch / f"{fingerprint}-facts"
        folder.mkdir()
    if mounted is not None:
        (folder / SOURCE).write_bytes(files_json(found))
    context.progress("storing the model")
    result = StepResult(step=context.step.name, fingerprint=fingerprint, model=facts)
    return context.keep(MODEL, folder, result, {"uri": model.uri})


def _without_pickles(context: Context, fetched: Fetched, *, mounted: bool) -> Path:
    """Another folder with the model's files, its weights as safetensors. Downloaded pickles are removed on the way."""
    folder = Path(tempfile.mkdtemp(prefix="safetensors-", dir=context.scratch))
    context.progress("converting pickles")
    for number, shard in enumerate(pickles.convert(fetched.folder, fetched.files, folder), start=1):
        context.progress("converting pickles", number)
        if not mounted:
            (fetched.folder / shard).unlink()
    for name in fetched.files:
        if not name.endswith((weights.PICKLES, weights.PICKLES_INDEX)):
            shutil.copyfile(fetched.folder / name, folder / name)
    return folder


def _check_unchanged(context: Context, known: Manifest, folder: Path, field: str) -> None:
    listed = parse_files(context.store.objects.read(f"{context.store.path(MODEL, known)}/{SOURCE}") or b'{"files":[]}')
    for file in listed:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise StepFailed(
                StepReason.ModelChanged,
                f"{field}.uri: {file.path} at {known.inputs['uri']} is not the file that this job began with; put it"
                " back, or give the new model a path of its own",
            )


def _listed(folder: Path, names: tuple[str, ...]) -> tuple[File, ...]:
    return tuple(File(path=name, bytes=(folder / name).stat().st_size, sha256=sha256(folder / name)) for name in sorted(names))


def _drop_unlisted(folder: Path, files: tuple[File, ...]) -> None:
    """Remove what the hub's client keeps beside a download."""
    listed = {file.path for file in files}
    for file in _names(folder):
        if file not in listed:
            (folder / file).unlink()


def _names(folder: Path) -> list[str]:
    """Paths of all files below a folder."""
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]


@contextmanager
def watching(context: Context, activity: str, folder: Path) -> Iterator[None]:
    """Report the MiB that a download has put into `folder`, so that a long one doesn't look dead."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(WATCH_SECONDS):
            sizes = (p.stat().st_size for p in folder.rglob("*") if p.is_file())
            try:
                context.progress(activity, sum(sizes) >> 20)
            except FileNotFoundError:
                continue  # renamed between the listing and the look at it

    context.progress(activity)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
