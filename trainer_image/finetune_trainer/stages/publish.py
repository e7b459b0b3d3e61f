"""Publish: copy artifacts to where others look for them, each into a folder of its name, and read every byte back.

    <uri>/<artifact>/…            the artifact's files
    <uri>/<artifact>/files.json   written last: who finds it finds all that it names

What is there already with the same digest stays as it is. How hf:// differs is told in export/hub.py. The model card gets the
scores, which nobody knew when the artifact was made; all else is the artifact's, byte by byte.
"""

from __future__ import annotations

import json
from pathlib import Path

from finetune_trainer import environment
from finetune_trainer.context import Context
from finetune_trainer.contract import places
from finetune_trainer.contract.artifacts import Publish
from finetune_trainer.contract.pipeline import ADAPTER, BASE, EVALUATE, MERGE, MERGED, TRAIN, steps, subjects
from finetune_trainer.contract.places import HF, mounted_path
from finetune_trainer.contract.pod import Owner
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import File, Manifest, Scores, StepResult
from finetune_trainer.digests import sha256
from finetune_trainer.export import card, hub
from finetune_trainer.failures import StepFailed
from finetune_trainer.store.bucket import BucketObjects
from finetune_trainer.store.directory import DirectoryObjects
from finetune_trainer.store.entries import Objects
from finetune_trainer.store.files import FILES, files_json, folder_digest, parse_files


def run(context: Context) -> StepResult:
    """Copy what is asked for and commit where it went. Raises StepFailed PublishDamaged when a copy reads back wrong."""
    done = context.committed()
    if done is not None:
        return done
    index = int(context.step.name.rpartition("-")[2])
    target = context.run.publish[index]
    inputs: dict[str, str] = {}
    if target.uri.startswith(HF.prefix):
        digests, inputs["commit"] = _to_hub(context, target, f"spec.publish[{index}]")
    else:
        digests = _to_place(context, target)
    folder = context.scratch / "output"
    folder.mkdir()
    (folder / "published.json").write_text(json.dumps(digests, indent=1))
    fingerprint = context.inputs.fingerprint(context.step.name)
    result = StepResult(step=context.step.name, fingerprint=fingerprint, published=tuple(digests))
    return context.commit(folder, result, digests | inputs)


def _to_place(context: Context, target: Publish) -> dict[str, str]:
    """Digest by the uri that each artifact has now."""
    place = open_place(context, target)
    digests: dict[str, str] = {}
    for name in target.artifacts:
        manifest, folder = outgoing(context, name)
        context.progress(f"publishing {name}")
        copy(place, name, manifest, folder, context.scratch / "read-back")
        digests[f"{target.uri.rstrip('/')}/{name}"] = folder_digest(manifest.files)
    return digests


def _to_hub(context: Context, target: Publish, field: str) -> tuple[dict[str, str], str]:
    """The same, and the commit: a model that lies in a folder of a repository has no uri of its own."""
    artifacts = {name: outgoing(context, name) for name in target.artifacts}
    context.progress(f"publishing {', '.join(artifacts)}")
    commit = hub.publish(target, field, artifacts, context.scratch)
    repository, _, branch = target.uri.partition("@")
    at = f"@{branch}" if branch else ""
    below = {name: f"/{name}" if len(artifacts) > 1 else "" for name in artifacts}
    return {f"{repository}{below[n]}{at}": folder_digest(m.files) for n, (m, _) in artifacts.items()}, commit


def step_of(artifact: str) -> str:
    """The step that makes an artifact."""
    return {ADAPTER: TRAIN, MERGED: MERGE}.get(artifact, f"quantize-{artifact}")


def outgoing(context: Context, name: str) -> tuple[Manifest, Path]:
    """The artifact as others get it: its own files, with the scores in its card once it was scored."""
    manifest, folder = context.inputs.output(step_of(name))
    found, base = (_scores(context, subject) for subject in (MERGED if name == ADAPTER else name, BASE))
    listed = {file.path: file for file in manifest.files}
    if found is None or card.FILE not in listed:
        return manifest, folder
    copy_of = context.scratch / "outgoing" / name
    for path in listed:
        (copy_of / path).parent.mkdir(parents=True, exist_ok=True)
        (copy_of / path).symlink_to((folder / path).resolve())
    told = copy_of / card.FILE
    told.unlink()
    told.write_text(card.scored((folder / card.FILE).read_text(), context.run, found, base))
    listed[card.FILE] = File(path=card.FILE, bytes=told.stat().st_size, sha256=sha256(told))
    return manifest.model_copy(update={"files": tuple(listed.values())}), copy_of


def _scores(context: Context, subject: str) -> Scores | None:
    """What the evaluation found, None where it scored no such subject."""
    scored = next((s for s in steps(context.run) if s.stage == EVALUATE and subject in subjects(context.run, s)), None)
    manifest = None if scored is None else context.store.read(EVALUATE, context.inputs.fingerprint(scored.name))
    return None if manifest is None else next(s for s in manifest.result.scores if s.subject == subject)


def open_place(context: Context, target: Publish) -> Objects:
    """The folder or bucket to copy to. An S3 bucket is looked for where its Secret says, else where the artifact store's is."""
    mounted = mounted_path(target.uri, context.pod.mounts)
    if mounted is not None:
        return DirectoryObjects(Path(mounted))
    access, store = environment.access(Owner.PUBLISH, places.of(target.uri)), context.run.store
    return BucketObjects(target.uri, access, access.own_s3_endpoint or store.endpoint, access.own_s3_region or store.region)


def copy(place: Objects, name: str, manifest: Manifest, folder: Path, scratch: Path) -> None:
    """Copy one artifact, unless it is there already; read each file back and compare its digest."""
    listing = files_json(manifest.files)
    there = place.read(f"{name}/{FILES}")
    if there == listing:
        return
    if there is not None and {f.path for f in parse_files(there)} != {f.path for f in manifest.files}:
        place.delete(name)  # an earlier model of ours, with files that nobody would overwrite
    for file in manifest.files:
        place.write_file(f"{name}/{file.path}", folder / file.path)
        copied = place.fetch(name, [file], scratch / name) / file.path
        if sha256(copied) != file.sha256:
            message = f"{name}/{file.path} reads back with another digest than it was written with"
            raise StepFailed(StepReason.PublishDamaged, message)
        (scratch / name / file.path).unlink(missing_ok=True)
    place.overwrite(f"{name}/{FILES}", listing)
