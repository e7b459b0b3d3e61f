"""Settings that do nothing beside the others: what is written for nothing is told, as its writer meant something by it.

What contradicts itself is refused (contract/combinations, api/rules); what only the rows can tell, prepare remarks on
(contract/remarks).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_trainer.contract import places
from finetune_trainer.contract.dataset import Split
from finetune_trainer.contract.metrics import BOUNDS, SHARE, Metric
from finetune_trainer.contract.objectives import OBJECTIVES
from finetune_trainer.contract.reasons.remarks import RemarkReason
from finetune_trainer.contract.reports import Remark
from finetune_trainer.contract.training import TRACKERS, Method

_FILE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|txt)(\.(gz|zst|bz2|xz))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Unused:
    """Fields below these paths do nothing where `holds`, and the sentence goes on with `why`."""

    fields: tuple[str, ...]
    holds: Callable[[FineTuneJobSpec], bool]
    why: str


def _takes_no_secret(uris: Iterable[str | None]) -> bool:
    """Whether all of these are mounted, or unset."""
    return not any(places.of(uri).keys for uri in uris if uri is not None)


def _rows(spec: FineTuneJobSpec) -> list[str | None]:
    held = (spec.dataset.test, spec.dataset.validation)
    tasks = () if spec.evaluation.task_files is None else (spec.evaluation.task_files.uri,)
    return [spec.dataset.uri, *(split.uri for split in held if split is not None), *tasks]


def _chooses(split: Split | None) -> bool:
    return split is not None and bool(split.fraction)


def _is_file(uri: str) -> bool:
    place, rest = places.of(uri), uri.partition("://")[2]
    return place is places.HTTPS or (place is places.CONFIG_MAP and "/" in rest) or _FILE.search(rest) is not None


TABLE = (
    Unused(
        ("training.lora",),
        lambda spec: spec.training.method is Method.FULL,
        "method Full trains every weight, without adapters; remove it, or set spec.training.method to LoRA or QLoRA",
    ),
    Unused(
        ("training.preference",),
        lambda spec: not OBJECTIVES[spec.training.objective].of_pairs,
        "it is for objectives DPO, ORPO and KTO; remove it, or set spec.training.objective",
    ),
    Unused(
        ("training.warmupRatio",),
        lambda spec: spec.training.schedule == "constant",
        "schedule constant has no warm-up; remove it, or set spec.training.schedule to constant_with_warmup",
    ),
    Unused(
        ("training.checkpoint.intervalSeconds",),
        lambda spec: spec.training.checkpoint.every_steps is not None,
        "spec.training.checkpoint.everySteps decides when checkpoints are saved; remove one of the two",
    ),
    Unused(
        ("training.reportSecretRef",),
        lambda spec: not any(TRACKERS[name] for name in spec.training.report_to),
        "it is for mlflow and wandb; remove it, or name one of them in spec.training.reportTo",
    ),
    Unused(
        ("merge.base",),
        lambda spec: spec.training.method is not Method.QLORA,
        "only QLoRA trains over another base than the original; remove it, or set spec.training.method to QLoRA",
    ),
    Unused(
        ("parallelism.gpu",),
        lambda spec: spec.parallelism.gpus_per_node == 0,
        "spec.parallelism.gpusPerNode is 0; remove it, or ask for GPUs",
    ),
    Unused(
        ("budget",),
        lambda spec: spec.parallelism.gpus_per_node == 0,
        "it limits GPU-hours, and spec.parallelism.gpusPerNode is 0; remove it, or ask for GPUs",
    ),
    Unused(
        ("dataset.test.seed",),
        lambda spec: not _chooses(spec.dataset.test) and spec.dataset.max_samples is None,
        "no rows are chosen by it; remove it, or set spec.dataset.test.fraction",
    ),
    Unused(
        ("dataset.validation.seed",),
        lambda spec: not _chooses(spec.dataset.validation),
        "no rows are chosen by it; remove it, or set spec.dataset.validation.fraction",
    ),
    Unused(
        ("dataset.subset", "dataset.files"),
        lambda spec: _is_file(spec.dataset.uri),
        "spec.dataset.uri is one file, and this chooses among those of a folder; remove it",
    ),
    Unused(
        ("model.secretRef",),
        lambda spec: _takes_no_secret([spec.model.uri]),
        "what the pods mount needs no credentials; remove it",
    ),
    Unused(
        ("training.distillation.teacher.secretRef",),
        lambda spec: spec.training.distillation is None or _takes_no_secret([spec.training.distillation.teacher.uri]),
        "what the pods mount needs no credentials; remove it",
    ),
    Unused(
        ("dataset.secretRef",),
        lambda spec: _takes_no_secret(_rows(spec)),
        "what the pods mount needs no credentials; remove it",
    ),
    Unused(
        ("storage.artifacts.secretRef",),
        lambda spec: _takes_no_secret([spec.storage.artifacts.uri]),
        "a claim needs no credentials; remove it, or set spec.storage.artifacts.uri to a bucket",
    ),
    Unused(
        ("storage.artifacts.size", "storage.artifacts.storageClassName"),
        lambda spec: spec.storage.artifacts.uri is not None,
        "spec.storage.artifacts.uri names a place that is there already, and no claim is made; remove it",
    ),
    Unused(
        ("stages.quantize",),
        lambda spec: not spec.artifacts,
        "spec.artifacts names none to make; remove it, or name some",
    ),
    Unused(
        ("stages.clean",),
        lambda spec: spec.storage.artifacts.keep_runs is None,
        "nothing is removed; remove it, or set spec.storage.artifacts.keepRuns",
    ),
    Unused(
        ("stages.publish",),
        lambda spec: not spec.publish,
        "spec.publish names no place; remove it, or name one",
    ),
    Unused(
        ("scheduling.queuedStages", "scheduling.workloadPriorityClassName"),
        lambda spec: spec.scheduling.queue_name is None and spec.profile is None,  # which may have a queue
        "it is for jobs that wait in a queue of Kueue; remove it, or set spec.scheduling.queueName",
    ),
)


def unused(spec: FineTuneJobSpec) -> tuple[Remark, ...]:
    """A remark for each field that differs from its default and does nothing."""
    written = list(_leaves(spec.model_dump(mode="json", by_alias=True, exclude_defaults=True), ""))
    found = [(path, row.why) for row in TABLE if row.holds(spec) for path in written if _is_below(path, row.fields)]
    found += [*_of_targets(spec), *_of_gates(spec)]
    said = [f"spec.{path} does nothing: {why}" for path, why in found]
    return tuple(Remark(reason=RemarkReason.FieldUnused, message=sentence) for sentence in said)


def _of_targets(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    """What each entry of spec.publish does not need."""
    for number, target in enumerate(spec.publish):
        if not target.private and places.of(target.uri) is not places.HF:
            yield f"publish[{number}].private", f"it is for repositories of {places.HF.prefix}; remove it"
        if target.secret_ref is not None and _takes_no_secret([target.uri]):
            yield f"publish[{number}].secretRef", "a claim needs no credentials; remove it"


def _of_gates(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    """Bounds that no score can miss. (Those that none can reach are refused.)"""
    for number, gate in enumerate(spec.evaluation.gates):
        if gate.metric not in list(Metric):
            continue
        least, most = BOUNDS.get(Metric(gate.metric), SHARE)
        never_missed = {
            "min": gate.min is not None and gate.min <= least,
            "max": gate.max is not None and gate.max >= most,
            "minImprovementOverBase": (gate.min_improvement_over_base or 0) <= least - most,
            "maxRegressionFromMerged": (gate.max_regression_from_merged or 0) >= most - least,
        }
        for bound in (bound for bound, is_so in never_missed.items() if is_so):
            reach = f"{least:g} at least" if most == inf else f"between {least:g} and {most:g}"
            yield f"evaluation.gates[{number}].{bound}", f"{gate.metric} is {reach}, so that every model passes; correct it"


def _is_below(path: str, fields: Iterable[str]) -> bool:
    return any(path == field or path.startswith(f"{field}.") for field in fields)


def _leaves(value: Any, path: str) -> Iterator[str]:
    """Paths of all that is no mapping, such as training.lora.rank; a reference counts as one value."""
    if not isinstance(value, dict) or path.endswith("Ref"):
        yield path
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{path}.{name}".strip("."))
