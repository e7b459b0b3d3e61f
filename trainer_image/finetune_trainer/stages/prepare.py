"""Prepare: fetch and check the model, render the rows, estimate the fit, and say which steps are done already.

    model entry ─► data entry ─► tasks entry ─► fit ─► manifests of all later steps

Needs no GPU: whatever is wrong with a job is known before one is taken. Torch is loaded only where there is something to
train, for the shapes of the model's layers, and for weights in pickles.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Collection
from typing import Any

from finetune_trainer import environment
from finetune_trainer.context import Context
from finetune_trainer.contract import pipeline
from finetune_trainer.contract.formats import Quantization
from finetune_trainer.contract.places import mounted_path
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.remarks import remarks
from finetune_trainer.contract.reports import DatasetFacts, Manifest, ModelFacts, Remark, StepResult
from finetune_trainer.data import chat_template, dataset
from finetune_trainer.data.rendering import load_tokenizer
from finetune_trainer.data.source_files import SourceFiles
from finetune_trainer.data.vocabulary import check_vocabulary
from finetune_trainer.export import llamacpp
from finetune_trainer.failures import StepFailed
from finetune_trainer.inputs import DATA, kind_of
from finetune_trainer.memory.fit import Teacher, check, fit_for
from finetune_trainer.memory.shape import positions_of, shape_of
from finetune_trainer.scoring import tasks
from finetune_trainer.stages import model_findings
from finetune_trainer.stages.model_entry import model_entry, watching
from finetune_trainer.store import runs
from finetune_trainer.training.trainable import check_trainable


def run(context: Context) -> StepResult:
    """Make the model and data entries that are missing, and report facts, fit and finished steps."""
    check(context.run.training, context.run.devices)
    # The hub's client keeps tokens and locks in its home, and only scratch can be written to.
    home = {"HF_HOME": str(context.scratch / "hub")}
    environment.put(home | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"})

    facts = chat_template.lay(context, _facts(model_entry(context, context.run.model, "spec.model")))
    teacher = _teacher(context)
    fingerprint = pipeline.data_fingerprint(context.run, facts)
    data = context.store.read(DATA, fingerprint)
    if data is not None:
        _check_same_rows(context, data)
    result = _render(context, facts, fingerprint) if data is None else data.result
    chat_template.keep(context, facts)
    assert result.dataset is not None  # what _render commits has it
    dataset.check_objective(context.run.training.objective, result.dataset.format)  # the rows may be an earlier job's
    dataset.check_test_rows(result.dataset)
    tasks.make_entry(context)

    context.progress("estimating memory")
    fit = fit_for(context.run, facts, result.dataset, context.inputs.model_without_weights(), teacher)
    wanted = context.inputs.fingerprints()  # from now on nobody removes what is found done
    runs.note(context.store.objects, runs.place(context.run, wanted), runs.known(context.run, wanted, time.time()))
    done = _finished(context)
    trained = pipeline.TRAIN in {result.step for result in done}
    if not trained:
        context.progress("looking at the model's layers")
        check_trainable(context.run, result.dataset, context.inputs.model_without_weights())
    found = model_findings.of_models(context, trained=trained)
    _check_formats(context, {result.step for result in done})
    context.progress(f"{len(done)} of {len(pipeline.steps(context.run)) - 1} later steps are done already")
    rows = result.dataset.model_copy(update={"tasks_digest": context.inputs.tasks_digest()})
    told = context.inputs.with_teacher(facts)
    changes = {
        "step": context.step.name,
        "model": told,
        "dataset": rows,
        "fit": fit,
        "done": done,
        "artifact": context.inputs.base(),
        "warnings": (*found, *_warnings(context, rows, facts.parameters)) or None,
    }
    return result.model_copy(update=changes)


def _warnings(context: Context, rows: DatasetFacts, parameters: int) -> tuple[Remark, ...]:
    config = json.loads((context.inputs.model_without_weights() / "config.json").read_bytes())
    experts = shape_of(config, parameters).experts / parameters
    return remarks(context.run, rows, positions_of(config), llamacpp.window_left_out(config), experts)


def _check_formats(context: Context, done: Collection[str]) -> None:
    """Raises StepFailed where the model can't become one of the artifacts that are to be made, as far as that can be known."""
    asked: dict[str, set[Quantization]] = {}
    for artifact in (a for a in context.run.artifacts if f"quantize-{a.name}" not in done):
        asked.setdefault(artifact.of_format.checked_by, set()).add(artifact.quantization)
    for name, quantizations in asked.items():
        context.progress("asking whether the model can be converted")
        checked_by = importlib.import_module(f"finetune_trainer.export.{name}")
        checked_by.check(context.inputs.model_without_weights(), context.scratch, sorted(quantizations))


# ── The model ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _teacher(context: Context) -> Teacher | None:
    """A distillation's teacher, made an entry as the base model is. Raises StepFailed where its vocabulary is another."""
    distillation = context.run.training.distillation
    if distillation is None:
        return None
    field = "spec.training.distillation.teacher"
    try:
        model_entry(context, distillation.teacher, field)
    except StepFailed as failure:
        if not failure.message.startswith("spec.model:"):
            raise
        raise StepFailed(failure.reason, failure.message.replace("spec.model:", f"{field}:", 1)) from failure
    teacher = context.inputs.teacher()
    assert teacher is not None  # there is a distillation
    check_vocabulary(context.inputs.model_without_weights(), teacher.folder)
    return teacher


def _facts(manifest: Manifest) -> ModelFacts:
    assert manifest.result.model is not None  # model_entry commits no other
    return manifest.result.model


# ── The rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _render(context: Context, facts: ModelFacts, fingerprint: str) -> StepResult:
    """Fetch, split and render the rows; commit them; return the result that counts."""
    model_folder = context.inputs.model_without_weights()
    with watching(context, "fetching the rows", context.scratch / "rows"):
        splits = dataset.load(context.run, context.scratch / "rows", context.pod.mounts)
    context.progress("rendering")
    tokenizer: Any = load_tokenizer(model_folder)
    folder = context.scratch / "data"
    described = dataset.render(
        context.run, splits, tokenizer, folder, lambda row, total: context.progress("rendering", row, total)
    )
    fit = fit_for(context.run, facts, described, model_folder)
    result = StepResult(step=context.step.name, fingerprint=fingerprint, model=facts, dataset=described, fit=fit)
    return context.commit(folder, result, {"model": facts.digest, "source": splits.source_digest})


def _check_same_rows(context: Context, known: Manifest) -> None:
    """Mounted rows can be changed under their uri. Raises StepFailed RowsChanged rather than train on those of before."""
    asked = context.run.dataset
    uris = [asked.uri, *(split.uri for split in (asked.test, asked.validation) if split is not None and split.uri)]
    if any(mounted_path(uri, context.pod.mounts) is None for uri in uris):
        return  # fetching all again would cost what the entry saves
    context.progress("checking the rows")
    files = SourceFiles(context.run, context.scratch / "rows", context.pod.mounts)
    for place in (files.own, *files.held.values()):
        files.fetch(place)
    if known.inputs["source"] not in (files.digest, files.earlier_digest):
        raise StepFailed(
            StepReason.RowsChanged,
            f"spec.dataset: the rows at {' or '.join(uris)} are not those that this store's results were made of; put those"
            " back, or give the new ones a name of their own",
        )


# ── What is done already ──────────────────────────────────────────────────────────────────────────────────────────────


def _finished(context: Context) -> tuple[StepResult, ...]:
    """Results of the later steps whose output is in the store, whole; without the facts that prepare reports itself."""
    context.progress("looking for finished steps")
    found = []
    for step in pipeline.steps(context.run):
        if step.name == context.step.name:
            continue
        manifest = context.store.read(kind_of(step), context.inputs.fingerprint(step.name))
        if manifest is not None:
            found.append(manifest.result.model_copy(update={"model": None, "dataset": None, "fit": None}))
    return tuple(found)
