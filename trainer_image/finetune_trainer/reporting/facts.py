"""What a report tells of a run, read from the run's configuration and its artifact store: all that is there by now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_trainer.contract.evaluation import AnswerEngine
from finetune_trainer.contract.pipeline import EVALUATE, TRAIN, Step, answered, steps, subjects
from finetune_trainer.contract.reports import Manifest, Progress, Scores
from finetune_trainer.data import rendered
from finetune_trainer.inputs import CURVE, Inputs, kind_of

Facts = dict[str, Any]  # as JSON, for the page


def read(inputs: Inputs, progress: Path | None) -> Facts:
    """All facts. `progress` holds the lines that training reports: its losses until it has ended. Raises StepFailed where
    prepare has not run yet.
    """
    prepared = inputs.prepared()
    wanted = inputs.fingerprints()
    made = manifests(inputs, wanted)
    scored = [found for step in steps(inputs.run) if step.stage == EVALUATE for found in _scored(inputs, step, wanted)]
    return {
        "name": inputs.run.name,
        "store": inputs.store.uri,
        "configuration": inputs.run.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "prepared": prepared.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"done"}),
        "samples": _lines(inputs.of_data(f"{rendered.SAMPLES}.jsonl"), rendered.SAMPLES),
        "curve": _curve(inputs, wanted[TRAIN]) or _curve_so_far(progress),
        "lineage": [_lineage(name, manifest) for name, manifest in made.items()],
        "training": _training(made.get(TRAIN)),
        "scores": [scores.model_dump(mode="json", by_alias=True, exclude_none=True) for scores, _, _ in scored],
        "answers": {scores.subject: _lines(folder, "rows") for scores, folder, _ in scored},
        "proofs": _proofs({**made, **{f"evaluate/{scores.subject}": manifest for scores, _, manifest in scored}}),
    }


def manifests(inputs: Inputs, wanted: Mapping[str, str]) -> dict[str, Manifest]:
    """Each step that is done, with what it committed. `wanted` are the run's fingerprints."""
    found = {step.name: inputs.store.read(kind_of(step), wanted[step.name]) for step in steps(inputs.run)}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _scored(inputs: Inputs, step: Step, fingerprints: Mapping[str, str]) -> Iterator[tuple[Scores, Path, Manifest]]:
    """Each subject that was scored, the folder with its answers and the entry, whichever engine answered."""
    for subject in subjects(inputs.run, step):
        wanted = fingerprints[f"{EVALUATE}/{subject}"]
        for fingerprint in dict.fromkeys((answered(wanted, AnswerEngine.VLLM), wanted)):
            if (manifest := inputs.store.read(EVALUATE, fingerprint)) is not None:
                folder = inputs.store.fetch(EVALUATE, manifest, inputs.folder / EVALUATE / fingerprint)
                yield manifest.result.scores[0], folder, manifest
                break


def _lines(folder: Path, name: str) -> list[Any]:
    with rendered.path(folder, name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _curve(inputs: Inputs, training: str) -> list[tuple[int, float]]:
    """Loss by optimizer step, as the training that has ended left it."""
    entry = inputs.store.read(CURVE, training)
    if entry is None:
        return []
    folder = inputs.store.fetch(CURVE, entry, inputs.folder / CURVE / entry.fingerprint)
    return [(line["step"], line["loss"]) for line in _lines(folder, CURVE)]


def _curve_so_far(progress: Path | None) -> list[tuple[int, float]]:
    """The same of a training that goes on. What went on from a checkpoint told of some steps twice: the last word counts."""
    if progress is None or not progress.is_file():
        return []
    told = map(Progress.model_validate_json, progress.read_text(encoding="utf-8").splitlines())
    return sorted({line.step: line.loss for line in told if line.step_name == TRAIN and line.loss is not None}.items())


def _lineage(name: str, manifest: Manifest) -> Facts:
    artifact = manifest.result.artifact
    return {
        "step": name,
        "fingerprint": manifest.fingerprint,
        "inputs": manifest.inputs,
        "versions": manifest.versions,
        "artifact": None if artifact is None else artifact.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def _training(manifest: Manifest | None) -> Facts | None:
    facts = None if manifest is None else manifest.result.train
    return None if facts is None else facts.model_dump(mode="json", by_alias=True, exclude_none=True)


def _proofs(made: dict[str, Manifest]) -> list[Facts]:
    return [{"of": name, **check.model_dump(mode="json")} for name, entry in made.items() for check in entry.checks]
