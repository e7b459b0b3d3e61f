"""The model card: a README.md in each folder that leaves the pipeline, so that a copy explains itself.

Its front matter is what model hubs read: the base model, and, once they are known, the scores (`model-index`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from finetune_trainer.context import Context
from finetune_trainer.contract.artifacts import Artifact
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.places import HF
from finetune_trainer.contract.reports import DatasetFacts, Scores, TrainFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Method, Training
from finetune_trainer.export.server_files import for_vllm

FILE, LICENCES = "README.md", "LICENSE*"
HUB_METRICS: dict[str, str] = {  # where the hub's word for a score is another than ours
    Metric.EXACT_MATCH: "exact_match",
    Metric.ROUGE_1: "rouge",
    Metric.ROUGE_2: "rouge",
    Metric.ROUGE_L: "rouge",
    Metric.MACRO_F1: "f1",
    Metric.PREFERENCE_ACCURACY: "accuracy",
}


def write(folder: Path, context: Context, train: TrainFacts, artifact: Artifact | None = None) -> None:
    """Write README.md into a finished folder."""
    licences = sorted(file.name for file in folder.glob(LICENCES))
    licence = f"| licence | the base model's, in {', '.join(licences)} |\n" if licences else ""
    (folder / FILE).write_text(text(context, train, artifact) + licence)


def scored(card: str, run: RunConfig, found: Scores, base: Scores | None) -> str:
    """The card with what the evaluation said: for people beside the base model's scores, where those are known, and for hubs
    in the front matter.
    """
    told = ModelCard(card)
    assert isinstance(told.data, ModelCardData)
    told.data.model_name, told.data.eval_results = run.name, results(run, found)
    before = {} if base is None else base.values
    lines = [
        "",
        "## Scores",
        f"On {found.samples:,} held-out rows; answers are greedy.",
        "",
        "| | base model | this model |",
        "| --- | --- | --- |",
        *(f"| {m} | {f'{before[m]:.4g}' if m in before else ''} | {value:.4g} |" for m, value in found.values.items()),
    ]
    return f"{told}" + "\n".join(lines) + "\n"


def results(run: RunConfig, found: Scores) -> list[EvalResult]:
    """The scores as hubs know them. Rows that no hub has are named by what they are, not by where they lie."""
    scheme, _, place = (run.dataset.test.uri or run.dataset.uri).partition("://")
    repository, _, revision = place.partition("@")
    rows: dict[str, Any] = {"dataset_type": "held-out-rows", "dataset_name": "held-out rows"}
    if scheme == HF.scheme:
        rows = {"dataset_type": repository, "dataset_name": repository, "dataset_revision": revision or None}
    rows |= {"dataset_split": "test", "dataset_args": {"rows": found.samples}}
    made = []
    for metric, value in ((str(name), value) for name, value in found.values.items()):
        task, _, name = metric.rpartition("/")
        of = {"dataset_type": task, "dataset_name": task} if task else rows  # a benchmark's score is <task>/<metric>
        kind = name if task else HUB_METRICS.get(metric, metric)
        made.append(EvalResult("text-generation", **of, metric_type=kind, metric_name=metric, metric_value=value))
    return made


def copy_licences(model: Path, folder: Path) -> None:
    """What is made of a model goes on under its licence, whose text has to go along."""
    for file in model.glob(LICENCES):
        shutil.copyfile(file, folder / file.name)


def text(context: Context, train: TrainFacts, artifact: Artifact | None = None) -> str:
    """The card: what it is, from what it was made, how it was trained, and the digests of its inputs."""
    run, prepared = context.run, context.inputs.prepared()
    assert prepared.model is not None
    assert prepared.dataset is not None
    model, data, training = prepared.model, prepared.dataset, run.training
    what = context.step.stage if artifact is None else f"{artifact.format} {artifact.quantization}"
    what += ", weighed by training rows" if artifact is not None and artifact.imatrix else ""
    trained = "model" if training.method is Method.FULL else "adapter"
    kind = {"train": trained, "merge": "merged model"}.get(what, what)
    passes = f"{training.max_steps} steps" if training.max_steps else f"{training.passes:g} epochs"
    scheme, _, repository = run.model.uri.partition("://")
    header = ModelCardData(
        base_model=repository.partition("@")[0] if scheme == HF.scheme else None,  # hubs take nothing but a repository
        pipeline_tag="text-generation",
        tags=["finetune-operator", training.method.lower()],
    )
    lines = [
        "---",
        header.to_yaml(),
        "---",
        f"# {run.name}: {kind}",
        "",
        f"Made by finetune-operator from the FineTuneJob `{run.namespace}/{run.name}`.",
        "",
        "| | |",
        "| --- | --- |",
        f"| base model | {run.model.uri}, revision {model.revision} |",
        f"| architecture | {model.architecture}, {model.parameters:,} parameters |",
        f"| base digest | `{model.digest}` |",
        f"| rows | {data.train_rows:,} to train on ({data.train_tokens:,} tokens, {data.format}), "
        f"{data.test_rows:,} to test, {_dropped(data)} |",
        f"| rows digest | train `{data.train_digest}`, test `{data.test_digest}` |",
        f"| method | {_method(context)} |",
        f"| training | {passes}, {training.global_batch_size} rows a step, learning rate {training.peak_rate:g}, "
        f"{training.schedule}, seed {training.seed} |",
        f"| result | loss {train.loss:.4g} after {train.steps:,} steps |",
    ]
    if kind == "adapter":
        lines.append(f"| in vLLM | {for_vllm(training.lora)} |")
    if artifact is not None or context.step.stage == "merge":
        lines.append(f"| adapter merged into | the {run.merge_base.lower()} base |")
    return "\n".join(lines) + "\n"


def _dropped(data: DatasetFacts) -> str:
    """Rows that were left out, by cause where the release that prepared them told it."""
    causes = ", ".join(f"{count.rows:,} {count.cause}" for count in data.dropped or ())
    return f"{data.dropped_rows:,} dropped" + (f": {causes}" if causes else "")


def _method(context: Context) -> str:
    training = context.run.training
    learned = f"{training.objective}, beta {training.preference.beta:g}, " if training.learning.of_pairs else ""
    return learned + _trained(training)


def _trained(training: Training) -> str:
    if training.method is Method.FULL:
        return "every weight"
    lora = training.lora
    targets = ", ".join(lora.targets)
    over = " over an 8-bit base" if training.quantization.bits == 8 else ""
    whole = f"; {', '.join(lora.modules_to_save)} whole" if lora.modules_to_save else ""
    return f"{training.method}{over}, rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {targets}{whole}"
