"""Every field of the spec, with all methods, objectives and strategies: it counts, or is refused, or said to do nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import celpy
import pytest
from celpy.adapter import json_to_cel

from finetune_operator.api.crdgen import Schema, finetunejobs
from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_operator.api.rules.finetunejob import RULES
from finetune_operator.cli.rules import values_at
from finetune_operator.finetunejob import admission
from finetune_operator.finetunejob.unused import TABLE, unused

Body = dict[str, Any]
PAIRED = ("DPO", "ORPO", "KTO")

# What a field is set to, where no other value than its default follows from its schema.
VALUES: Body = {
    "managedBy": "example.com/elsewhere",
    "model.secretRef": {"name": "s"},
    "model.chatTemplate": {"configMapKeyRef": {"name": "t", "key": "k"}},
    "dataset.secretRef": {"name": "s"},
    "dataset.files": ["*.jsonl"],
    "dataset.columns": {"prompt": "q"},
    "dataset.labels": {"0": "no"},
    "dataset.test": {"fraction": 0.2, "seed": 7},
    "dataset.validation": {"fraction": 0.2, "seed": 7},
    "training.distillation": {"teacher": {"uri": "hf://a/t", "secretRef": {"name": "s"}}},
    "training.lora.targets": ["q_proj"],
    "training.lora.modulesToSave": ["lm_head"],
    "training.schedule": "linear",
    "training.optimizer": "adamw_torch",
    "training.earlyStopping": {"patience": 2},
    "training.reportTo": ["tensorboard"],
    "training.reportSecretRef": {"name": "s"},
    "parallelism.gpu": {"resourceName": "amd.com/gpu", "memory": "24Gi"},
    "artifacts": [{"name": "q", "format": "GGUF", "quantization": "Q4_K_M"}],
    "evaluation.tasks": [{"name": "t"}],
    "evaluation.taskFiles": {"uri": "pvc://a/t"},
    "evaluation.gates": [{"name": "g", "metric": "loss", "max": 3}],
    "publish": [{"uri": "pvc://a/b"}],
    "serving": {"template": {"engine": {"type": "VLLM"}}},
    "storage.artifacts.uri": "pvc://a/b",
    "storage.artifacts.endpoint": "https://s3",
    "storage.artifacts.secretRef": {"name": "s"},
    "storage.artifacts.caSecretRef": {"name": "s"},
    "storage.artifacts.size": "30Gi",
    "storage.scratch.size": "30Gi",
    "podTemplate": {"nodeSelector": {"a": "b"}},
    "profile": "a100",
}
STAGES = ("prepare", "train", "merge", "quantize", "evaluate", "publish", "clean")
OF_STAGE = {
    "image": "i", "resources": {"limits": {"cpu": 1}}, "nodeSelector": {"a": "b"}, "tolerations": [{"key": "a"}],
    "serviceAccountName": "s",
}  # fmt: skip
VALUES |= {f"stages.{stage}.{field}": value for stage in STAGES for field, value in OF_STAGE.items()}

# Where a field counts that does not in every job.
COUNTS: dict[str, Callable[[Body], bool]] = {
    "model.secretRef": lambda spec: not spec["model"]["uri"].startswith("pvc"),
    "dataset.secretRef": lambda spec: not spec["dataset"]["uri"].startswith("configmap"),
    "dataset.subset": lambda spec: not spec["dataset"]["uri"].startswith("configmap"),
    "dataset.files": lambda spec: not spec["dataset"]["uri"].startswith("configmap"),
    "training.lora": lambda spec: spec["training"]["method"] != "Full",
    "training.quantization": lambda spec: spec["training"]["method"] == "QLoRA",
    "merge.base": lambda spec: spec["training"]["method"] == "QLoRA",
    "training.preference.beta": lambda spec: spec["training"]["objective"] in PAIRED,
    "training.preference.desirableWeight": lambda spec: spec["training"]["objective"] == "KTO",
    "training.preference.undesirableWeight": lambda spec: spec["training"]["objective"] == "KTO",
    "training.packing": lambda spec: spec["training"]["objective"] not in PAIRED,
    "training.neftuneNoiseAlpha": lambda spec: spec["training"]["objective"] not in PAIRED,
    "training.completionOnlyLoss": lambda spec: spec["training"]["objective"] not in PAIRED,
    "training.distillation": lambda spec: spec["training"]["objective"] == "Distillation",
    "training.warmupRatio": lambda spec: spec["training"].get("schedule") != "constant",
    "training.checkpoint.intervalSeconds": lambda spec: "checkpoint" not in spec["training"],
    "training.reportSecretRef": lambda spec: "reportTo" in spec["training"],
    "training.earlyStopping": lambda _: False,  # without evaluateEverySteps
    "training.keepCheckpoint": lambda _: False,
    "training.evaluateEverySteps": lambda spec: "validation" in spec["dataset"],
    "budget": lambda spec: spec["parallelism"]["gpusPerNode"] > 0,
    "parallelism.gpu": lambda spec: spec["parallelism"]["gpusPerNode"] > 0,
    "evaluation.tasks": lambda _: False,  # without taskFiles
    "evaluation.taskFiles": lambda _: False,  # without tasks
    "storage.artifacts.endpoint": lambda spec: spec["storage"]["artifacts"].get("uri", "").startswith("s3"),
    "storage.artifacts.region": lambda spec: spec["storage"]["artifacts"].get("uri", "").startswith("s3"),
    "storage.artifacts.caSecretRef": lambda spec: spec["storage"]["artifacts"].get("uri", "").startswith("s3"),
    "storage.artifacts.secretRef": lambda spec: spec["storage"]["artifacts"].get("uri", "").startswith("s3"),
    "storage.artifacts.size": lambda spec: "uri" not in spec["storage"]["artifacts"],
    "storage.artifacts.storageClassName": lambda spec: "uri" not in spec["storage"]["artifacts"],
    "stages.quantize": lambda spec: "artifacts" in spec,
    "stages.clean": lambda spec: "keepRuns" in spec["storage"]["artifacts"],
    "stages.publish": lambda spec: "publish" in spec,
    "scheduling.queuedStages": lambda spec: "queueName" in spec["scheduling"],
    "scheduling.workloadPriorityClassName": lambda spec: "queueName" in spec["scheduling"],
}


def schema() -> Schema:
    found: Schema = finetunejobs()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def fields(node: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Each field with its schema: what VALUES has whole, else what has no fields of its own."""
    if path in VALUES or ("properties" not in node and path):
        yield path, node
        return
    for name, inner in node["properties"].items():
        yield from fields(inner, f"{path}.{name}".strip("."))


def another_value(path: str, node: Schema) -> Any:
    """One that is not the default."""
    if path in VALUES:
        return VALUES[path]
    default = node.get("default")
    if "enum" in node:
        return next(value for value in node["enum"] if value != default)
    if node["type"] == "boolean":
        return not default
    if node["type"] in ("integer", "number"):
        step = 1 if node["type"] == "integer" else 0.01
        return (default or node.get("minimum", 0)) + (-step if node.get("maximum", 2) <= (default or 0) + step else step)
    return "hf://x/y" if path.endswith("uri") else "x"


def with_field(spec: Body, path: str, value: Any) -> Body:
    changed = dict(spec)
    *folders, name = path.split(".")
    node = changed
    for folder in folders:
        node[folder] = dict(node.get(folder, {}))
        node = node[folder]
    node[name] = value if not isinstance(node.get(name), dict) else node[name] | value
    return changed


METHODS, OBJECTIVES = ("QLoRA", "LoRA", "Full"), ("SFT", *PAIRED, "Distillation")
DEVICES = itertools.cycle(((0, "Auto"), (2, "Auto"), (2, "DDP"), (2, "FSDP"), (2, "ZeRO3"), (1, "Auto"), (0, "Auto")))
BESIDE: tuple[Body, ...] = (  # other fields that decide whether one counts
    {},
    {"model": {"uri": "pvc://a/b"}, "dataset": {"uri": "configmap://a/b"}, "storage": {"artifacts": {"uri": "pvc://a/b"}}},
    {"training": {"schedule": "constant", "checkpoint": {"everySteps": 5}}, "scheduling": {"queueName": "q"}},
    {"artifacts": VALUES["artifacts"], "publish": VALUES["publish"], "training": {"reportTo": ["mlflow"]}},
    {"dataset": {"uri": "hf://c/d", "validation": {"fraction": 0.1}}, "storage": {"artifacts": {"uri": "s3://a/b"}}},
)


def specs() -> Iterator[Body]:
    """One of each method and objective with each of the others beside it, the strategies in turn."""
    for method, objective, beside in itertools.product(METHODS, OBJECTIVES, BESIDE):
        gpus, strategy = next(DEVICES)
        yield {
            "model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}, "storage": {"artifacts": {}}, "scheduling": {},
            **beside,
            "training": {"method": method, "objective": objective} | beside.get("training", {}),
            "parallelism": {"gpusPerNode": gpus, "strategy": strategy},
        }  # fmt: skip


FIELDS = dict(fields(schema()))
SPECS = list(specs())
ENVIRONMENT = celpy.Environment()
PROGRAMS = [(rule, ENVIRONMENT.program(ENVIRONMENT.compile(rule.must))) for rule in RULES if not rule.of_an_edit]


def is_refused(spec: FineTuneJobSpec, path: str) -> bool:
    """The operator refuses the spec, or a rule of the API server does that looks at the field."""
    body, name = {"spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True)}, path.rpartition(".")[2]
    asked = ((program, rule.at.split(".")) for rule, program in PROGRAMS if name in rule.must)
    return bool(admission.problems(spec)) or any(
        not program.evaluate({"self": json_to_cel(value)}) for program, at in asked for value in values_at(body, at)
    )


def is_below(path: str, field: str) -> bool:
    return f"{path}.".startswith(f"{field}.")


def test_what_counts_somewhere_is_a_field() -> None:
    assert len(FIELDS) > 100
    assert [field for field in COUNTS if not any(is_below(path, field) or is_below(field, path) for path in FIELDS)] == []


@pytest.mark.parametrize("path", FIELDS)
def test_a_field_counts_or_is_refused_or_said_to_do_nothing(path: str) -> None:
    somewhere = next((COUNTS[field] for field in COUNTS if is_below(path, field)), None)
    for before in SPECS if somewhere else SPECS[::4]:
        spec = with_field(before, path, another_value(path, FIELDS[path]))
        parsed = FineTuneJobSpec.model_validate(spec)
        is_said = any(f"spec.{path}" in remark.message.partition(" ")[0] for remark in unused(parsed))
        if somewhere is None or somewhere(before):
            assert not is_said, spec
        else:
            assert is_said or is_refused(parsed, path), spec


DISTILLED = {"method": "LoRA", "objective": "Distillation"}


@pytest.mark.parametrize(
    ("path", "before", "is_said"),
    [
        ("dataset.test.seed", {"dataset": {"uri": "hf://c/d", "test": {"split": "test"}}}, True),
        ("dataset.test.seed", {"dataset": {"uri": "hf://c/d", "test": {"fraction": 0.2}}}, False),
        ("dataset.test.seed", {"dataset": {"uri": "hf://c/d", "test": {"split": "test"}, "maxSamples": 5}}, False),
        ("dataset.validation.seed", {"dataset": {"uri": "hf://c/d", "validation": {"split": "validation"}}}, True),
        ("dataset.validation.seed", {"dataset": {"uri": "hf://c/d", "validation": {"fraction": 0.2}}}, False),
        ("dataset.files", {"dataset": {"uri": "s3://c/rows.jsonl.gz"}}, True),
        ("dataset.files", {"dataset": {"uri": "s3://c/rows"}}, False),
        (
            "training.distillation.teacher.secretRef",
            {"training": {**DISTILLED, "distillation": {"teacher": {"uri": "pvc://a/t"}}}},
            True,
        ),
        (
            "training.distillation.teacher.secretRef",
            {"training": {**DISTILLED, "distillation": {"teacher": {"uri": "hf://a/t"}}}},
            False,
        ),
    ],
)
def test_a_field_of_a_value_counts_or_is_said_to_do_nothing(path: str, before: Body, is_said: bool) -> None:
    value = {"seed": 7, "files": ["*.jsonl"], "secretRef": {"name": "s"}}[path.rpartition(".")[2]]
    spec = with_field({"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}} | before, path, value)
    said = [remark.message.partition(" ")[0] for remark in unused(FineTuneJobSpec.model_validate(spec))]
    assert said == ([f"spec.{path}"] if is_said else [])


def test_a_name_of_the_users_own_is_told_whole() -> None:
    spec = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}, "stages": {"publish": {"nodeSelector": {"box": "b"}}}}
    (remark,) = unused(FineTuneJobSpec.model_validate(spec))
    assert remark.message.startswith("spec.stages.publish.nodeSelector.box does nothing: ")


def test_each_row_says_why() -> None:
    assert [row.why for row in TABLE if "; " not in row.why or "remove" not in row.why] == []


def test_what_an_entry_of_publish_does_not_need_is_named_by_its_number() -> None:
    entries = [{"uri": "hf://a/b", "private": False}, {"uri": "pvc://a/b", "private": False, "secretRef": {"name": "s"}}]
    spec = FineTuneJobSpec.model_validate({"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}, "publish": entries})
    said = [remark.message.partition(" does nothing: ")[0] for remark in unused(spec)]
    assert said == ["spec.publish[1].private", "spec.publish[1].secretRef"]


def test_a_bound_that_no_score_can_miss_is_named_with_what_scores_can_be() -> None:
    gates = [
        {"metric": "loss", "min": 0},
        {"metric": "exactMatch", "max": 1},
        {"metric": "exactMatch", "minImprovementOverBase": -1},
        {"metric": "exactMatch", "maxRegressionFromMerged": 1},
        {"metric": "perplexity", "min": 1},
        {"metric": "perplexity", "min": 1.01},
        {"metric": "exactMatch", "maxRegressionFromMerged": 0.99},
        {"metric": "arc/acc", "min": 0},
    ]
    named = [{"name": f"g{number}", **gate} for number, gate in enumerate(gates)]
    spec = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}, "evaluation": {"gates": named}}
    said = [remark.message.partition(", so that")[0] for remark in unused(FineTuneJobSpec.model_validate(spec))]
    assert said == [
        "spec.evaluation.gates[0].min does nothing: loss is 0 at least",
        "spec.evaluation.gates[1].max does nothing: exactMatch is between 0 and 1",
        "spec.evaluation.gates[2].minImprovementOverBase does nothing: exactMatch is between 0 and 1",
        "spec.evaluation.gates[3].maxRegressionFromMerged does nothing: exactMatch is between 0 and 1",
        "spec.evaluation.gates[4].min does nothing: perplexity is 1 at least",
    ]
