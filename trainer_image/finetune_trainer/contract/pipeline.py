"""The steps of a run, what each needs, and the fingerprint that says whether its output exists already.

    prepare ─► train ─► merge ─┬─► quantize-<artifact> ─► evaluate-<artifact>     (GGUF: scored on the CPU by llama.cpp)
                               ├─► evaluate        (base, merged and every safetensors artifact, on one device)
                               └─► publish-<n>     (after everything that it copies was scored)
                                     └─► clean     (where spec.storage.artifacts.keepRuns asks for it)

A fingerprint is a hash of a step's own inputs and of its recipe version. The version is raised only when the step's
output would change: an upgrade of the operator or of the trainer's image retrains nothing. For the same reason only what
differs from the fields' defaults counts: a field that is new changes nothing until somebody sets it. (So a default that
changes needs a higher recipe version.)
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from finetune_trainer.contract.artifacts import Artifact
from finetune_trainer.contract.dataset import Dataset
from finetune_trainer.contract.evaluation import AnswerEngine
from finetune_trainer.contract.fields import Model, TrainedModel
from finetune_trainer.contract.places import claim_of, config_map_of, mounted_path
from finetune_trainer.contract.reports import DatasetFacts, ModelFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.tasks import Task, Tasks

RECIPES = {"model": 1, "findings": 1, "data": 1, "tasks": 1, "train": 1, "merge": 2, "quantize": 1, "evaluate": 4, "publish": 1}

PREPARE, TRAIN, MERGE, EVALUATE, CLEAN = "prepare", "train", "merge", "evaluate", "clean"
AFTER_GATES = ("publish", CLEAN)  # stages that nothing is begun of until the gates have passed
BASE, ADAPTER, MERGED = "base", "adapter", "merged"  # what exists without being asked for in spec.artifacts
PICKLE = "Pickle"  # spec.model.weights of a model that is kept as safetensors wherever it comes from
FIRST_ROW_LOSS = "firstRowLoss"  # noted in the manifest of train: what merge must see again after reading the weights back


@dataclass(frozen=True)
class Step:
    """One node of the pipeline. `name` is unique in the run and names its Jobs; `stage` is the program that runs."""

    name: str
    stage: str
    needs: tuple[str, ...]
    artifact: str | None = None
    needs_gpu: bool = False


def steps(run: RunConfig) -> tuple[Step, ...]:
    """The steps of a run in an order in which each comes after what it needs."""
    on_gpu = run.devices.gpus > 0
    quantize = [Step(f"quantize-{a.name}", "quantize", (MERGE,), a.name) for a in run.artifacts]
    apart, beside = _apart(run), _beside_base(run)
    evaluate = [
        Step(EVALUATE, "evaluate", (MERGE, *(f"quantize-{n}" for n in beside)), needs_gpu=on_gpu),
        *(Step(f"evaluate-{name}", "evaluate", (f"quantize-{name}",), name) for name in apart),
    ]
    scored = tuple(e.name for e in evaluate)
    publish = [Step(f"publish-{i}", "publish", scored) for i, _ in enumerate(run.publish)]
    return (
        Step(PREPARE, "prepare", ()),
        Step(TRAIN, "train", (PREPARE,), needs_gpu=on_gpu),
        Step(MERGE, "merge", (TRAIN,)),
        *quantize,
        *evaluate,
        *publish,
        *(() if run.keep_runs is None else (Step(CLEAN, CLEAN, (*scored, *(p.name for p in publish))),)),
    )


def subjects(run: RunConfig, step: Step) -> tuple[str, ...]:
    """What an evaluate step scores: one artifact, or the base, the merged model and all artifacts that are scored with them."""
    if step.artifact is not None:
        return (step.artifact,)
    return (BASE, MERGED, *_beside_base(run))


def tasks_for(run: RunConfig, subject: str) -> tuple[Task, ...]:
    """The tasks that a subject is scored on. lm-eval asks the model through transformers, so others have none."""
    return () if run.tasks is None or subject in _apart(run) else run.tasks.named


def _apart(run: RunConfig) -> list[str]:
    """Names of the artifacts that an engine of their own scores (GGUF)."""
    return [a.name for a in run.artifacts if a.of_format.scored_by is not None]


def _beside_base(run: RunConfig) -> list[str]:
    """Names of those that are scored with the base and the merged model."""
    return [a.name for a in run.artifacts if a.of_format.scored_by is None]


# ── Fingerprints ──────────────────────────────────────────────────────────────────────────────────────────────────────


FINGERPRINT = re.compile("[0-9a-f]{20}")


def digest(*parts: Any) -> str:
    """Twenty hexadecimal digits over JSON values: short enough for names, long enough never to collide in one store."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def model_fingerprint(model: Model) -> str:
    """Fingerprint of the fetched base model. The revision it resolved to is in the manifest and stays until the uri changes."""
    return digest("model", RECIPES["model"], model.uri, *([model.weights] if model.weights == PICKLE else []))


def templated_fingerprint(model: TrainedModel) -> str:
    """Fingerprint of the base model under the job's chat template. What the template says is in the facts' digest."""
    return digest("chatTemplate", model_fingerprint(model), model.chat_template and model.chat_template.uri)


def findings_fingerprint(model: Model, field: str) -> str:
    """Fingerprint of what was found out about a model, in sentences that name the field which names it."""
    return digest("findings", RECIPES["findings"], model_fingerprint(model), field)


def data_fingerprint(run: RunConfig, model: ModelFacts) -> str:
    """Fingerprint of the rendered rows: they depend on the data, the model's chat template and tokenizer, and the length."""
    source = run.dataset.model_dump(mode="json", exclude={"secret_ref"}, exclude_defaults=True)
    return digest("data", RECIPES["data"], source, model.digest, run.training.max_length, run.training.completion_only_loss)


def tasks_fingerprint(tasks: Tasks) -> str:
    """Fingerprint of the fetched files of these tasks. What they hold stays until the uri or the names change."""
    return digest("tasks", RECIPES["tasks"], tasks.files.uri, sorted(task.name for task in tasks.named))


def fingerprints(run: RunConfig, model: ModelFacts, dataset: DatasetFacts) -> dict[str, str]:
    """Fingerprint of each step by name, `evaluate/<subject>` for each scored subject included."""
    unseen: Any = {"checkpoint": True, "report_to": True, "report_secret_ref": True}
    unseen["distillation"] = {"teacher": {"secret_ref"}}
    training = run.training.model_dump(mode="json", exclude=unseen, exclude_defaults=True)
    teacher = [model.teacher_digest] if model.teacher_digest else []
    train = digest("train", _train_recipe(model, dataset), model.digest, dataset.train_digest, training, *teacher)
    merge = digest("merge", RECIPES["merge"], train, run.merge_base)
    made = {BASE: model.digest, ADAPTER: train, MERGED: merge}
    for artifact in run.artifacts:
        made[artifact.name] = _quantize_fingerprint(merge, artifact)
    found = {PREPARE: data_fingerprint(run, model), TRAIN: train, MERGE: merge}
    found |= {f"quantize-{a.name}": made[a.name] for a in run.artifacts}
    for step in steps(run):
        if step.stage == "evaluate":
            scored = {s: _score_fingerprint(run, dataset, s, made[s]) for s in subjects(run, step)}
            found |= {f"evaluate/{s}": fingerprint for s, fingerprint in scored.items()}
            found[step.name] = digest("evaluate", scored, *_asked_engine(run, step))
    for index, target in enumerate(run.publish):
        copied = {name: made[name] for name in target.artifacts}
        found[f"publish-{index}"] = digest("publish", RECIPES["publish"], target.uri, copied)
    if run.keep_runs is not None:  # nothing is committed under it: what there is to remove is looked for in each run
        found[CLEAN] = digest(CLEAN, train, run.keep_runs)
    return found


def _train_recipe(model: ModelFacts, dataset: DatasetFacts) -> int:
    """One more for rows that are longer than the model's attention is plain.

    On GPUs such rows were trained as if it were plain everywhere, until attention.py had windows, soft caps and sinks: those
    results are not found again. All others were right, and stay.
    """
    plain = model.plain_attention_tokens
    return RECIPES["train"] + (plain is not None and dataset.longest_row_tokens > plain)


def _quantize_fingerprint(merge: str, artifact: Artifact) -> str:
    more = ["imatrix"] if artifact.imatrix else []
    return digest("quantize", RECIPES["quantize"], merge, artifact.format, artifact.quantization, *more)


def _score_fingerprint(run: RunConfig, dataset: DatasetFacts, subject: str, made: str) -> str:
    generation = run.generation.model_dump(mode="json", exclude={"engine"}, exclude_defaults=True)
    more: list[Any] = []
    if tasks := tasks_for(run, subject):
        asked = {task.name: task.model_dump(exclude_defaults=True) for task in tasks}
        more += [dataset.tasks_digest, asked]
    return digest("evaluate", RECIPES["evaluate"], subject, made, dataset.test_digest, generation, *more)


def _asked_engine(run: RunConfig, step: Step) -> list[str]:
    """GGUF artifacts are answered by llama.cpp whatever is asked for, and Auto is the default."""
    asked = run.generation.engine
    return [] if step.artifact is not None or asked is AnswerEngine.AUTO else [asked]


def answered(fingerprint: str, engine: str) -> str:
    """Where one subject's scores are kept: `evaluate/<subject>`'s fingerprint, and the engine where it is vLLM.

    Two engines' answers differ by rounding, as other kernels wrote them, and a gate may not take that for an improvement.
    The base's scores are shared by jobs, so they are found again only by a step that asks the same engine. Which one Auto
    comes to is known in the pod alone (its image, its GPU), so the step's own fingerprint has what was asked for: a step
    that is done stays done when an image gets vLLM, and all of its scores are of one engine.
    """
    return digest(fingerprint, engine) if engine == AnswerEngine.VLLM else fingerprint


# ── Where things lie in a pod ─────────────────────────────────────────────────────────────────────────────────────────


def model_path(model: Model, mounts: str) -> str | None:
    """Path in the pod of a model that is read where it is mounted; None for one that the store holds."""
    return None if model.weights == PICKLE else mounted_path(model.uri, mounts)


def claims(run: RunConfig) -> tuple[str, ...]:
    """Names of the persistent volume claims that a run's pods mount, the artifact store's first where it is one."""
    uris = (run.store.uri, *source_uris(run), *(p.uri for p in run.publish))
    return tuple(dict.fromkeys(name for uri in uris if (name := claim_of(uri))))


def config_maps(run: RunConfig) -> tuple[str, ...]:
    """Names of the ConfigMaps that prepare mounts: rows, and the chat template."""
    return tuple(dict.fromkeys(name for uri in source_uris(run) if (name := config_map_of(uri))))


def source_uris(run: RunConfig) -> tuple[str, ...]:
    """Every uri that a run reads: the models', the rows', the chat template's and the tasks'."""
    template = [run.model.chat_template.uri] if run.model.chat_template else []
    tasks = () if run.tasks is None else (run.tasks.files.uri,)
    return (*(model.uri for model in models(run)), *_dataset_uris(run.dataset), *template, *tasks)


def models(run: RunConfig) -> tuple[Model, ...]:
    """The base model, and the teacher of a distillation."""
    distillation = run.training.distillation
    return (run.model,) if distillation is None else (run.model, distillation.teacher)


def _dataset_uris(dataset: Dataset) -> tuple[str, ...]:
    splits = (dataset.test, dataset.validation)
    return (dataset.uri, *(s.uri for s in splits if s is not None and s.uri is not None))
