"""Settings as people get them wrong: each is refused with the field and the remedy, or taken with a warning, or taken as meant.

What a file says is read as kubectl and the API server read it. Prepare's remarks are asked for 80 rows of 64 tokens at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.builders import DATASET

from finetune_operator.api.crdgen import Schema, finetunejobs
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.cli.document import FileError, read_document
from finetune_operator.finetunejob.run_config import run_config
from finetune_operator.finetunejob.unused import unused
from finetune_operator.sentences import sentences
from finetune_trainer.contract.remarks import remarks
from finetune_trainer.contract.reports import Remark

Spec = dict[str, str]
GOOD: Spec = {"model": "{uri: 'hf://org/model'}", "dataset": "{uri: 'hf://org/rows'}"}
Q4 = "[{name: q4, format: GGUF, quantization: Q4_K_M}]"
FOREIGN = (
    "input should",
    "should be",
    "should have",
    "should match",
    "value error",
    "valid ",
    "pattern",
    "dictionary",
    "must match",
    "parse",
)
POSITIONS = 2048


def training(text: str) -> Spec:
    return {"training": f"{{{text}}}"}


def dataset(text: str) -> Spec:
    return {"dataset": f"{{uri: 'hf://org/rows', {text}}}"}


def model(uri: str) -> Spec:
    return {"model": f"{{uri: {uri}}}"}


def rows(uri: str) -> Spec:
    return {"dataset": f"{{uri: {uri}}}"}


def gate(text: str, **more: str) -> Spec:
    return {"evaluation": f"{{gates: [{{name: g, {text}}}]}}", **more}


def serving(text: str) -> Spec:
    return {"serving": f"{{template: {{engine: {{type: VLLM}}, {text}}}}}"}


REFUSED: dict[str, tuple[Spec, str]] = {
    # ── Names ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    "TRL's name": (training("numTrainEpochs: 3"), "spec.training.numTrainEpochs is not a field; write spec.training.epochs"),
    "PEFT's name": (training("lora_r: 8"), "spec.training.lora_r is not a field; write spec.training.lora.rank"),
    "a slip": (training("learnigRate: 1"), "spec.training.learnigRate is not a field; write spec.training.learningRate"),
    "another place": (training("gates: []"), "spec.training.gates is not a field; write spec.evaluation.gates"),
    "snake case": (training("max_length: 9"), "spec.training.max_length is not a field; write spec.training.maxLength"),
    "a method's capitals": (training("method: qlora"), "spec.training.method is qlora; it takes 'QLoRA', 'LoRA' or 'Full'"),
    "an artifact with capitals": (
        {"artifacts": "[{name: Q4_K, format: GGUF, quantization: Q4_K_M}]"},
        "spec.artifacts[0].name is Q4_K; it takes small letters, digits and -, such as q4-k",
    ),
    "an artifact that is there always": (
        {"artifacts": "[{name: merged, format: GGUF, quantization: Q4_K_M}]"}, "spec.artifacts[].name can't be adapter, merged",
    ),
    "a gate with capitals": (
        {"evaluation": "{gates: [{name: Better Than Base, metric: loss, max: 1}]}"},
        "spec.evaluation.gates[0].name is Better Than Base; it takes small letters, digits and -, such as better-than-base",
    ),
    "a server with a dot": (
        {"serving": "{name: my.bot, template: {engine: {type: VLLM}}}"},
        "spec.serving.name is my.bot; it takes small letters, digits and -, such as my-bot, beginning with a letter",
    ),
    "one name for two artifacts": ({"artifacts": f"{Q4[:-1]}, {Q4[1:]}"}, "spec.artifacts[].name q4 is there twice; give each"),
    "one name for two gates": (
        {"evaluation": "{gates: [{name: g, metric: loss, max: 1}, {name: g, metric: loss, max: 2}]}"},
        "spec.evaluation.gates[].name g is there twice; give each its own",
    ),
    "one repository twice": (
        {"publish": "[{uri: 'hf://a/b', secretRef: {name: s}}, {uri: 'hf://a/b', secretRef: {name: s}, artifacts: [adapter]}]"},
        "spec.publish[].uri names one hf:// repository twice",
    ),
    "an artifact that nobody makes": (gate("metric: loss, max: 1, artifact: q5"), "spec.evaluation.gates[].artifact is not ma"),
    # ── Numbers ───────────────────────────────────────────────────────────────────────────────────────────────────────
    "no epochs": (training("epochs: 0"), "spec.training.epochs is 0; it must be above 0"),
    "fewer epochs than none": (training("epochs: -1"), "spec.training.epochs is -1; it must be above 0"),
    "no learning rate": (training("learningRate: 0"), "spec.training.learningRate is 0; it must be above 0"),
    "a learning rate below 0": (training("learningRate: -2e-4"), "spec.training.learningRate is -0.0002; it must be above 0"),
    "a learning rate of 2": (training("learningRate: 2"), "spec.training.learningRate is 2; it must be at most 1"),
    "a learning rate in quotes": (
        training("learningRate: '2e-4'"), "spec.training.learningRate is 2e-4; it takes a number, without quotes",
    ),
    "a learning rate in words": (training("learningRate: fast"), "spec.training.learningRate is fast; it takes a number, with"),
    "no number": (training("learningRate: .nan"), "spec.training.learningRate is nan; it takes a finite number"),
    "a number without end": (training("maxGradNorm: .inf"), "spec.training.maxGradNorm is inf; it takes a finite number"),
    "more steps than can be counted": (
        training("maxSteps: 99999999999999999999"), "spec.training.maxSteps is 99999999999999999999; it must be at most 214748",
    ),
    "half a step": (training("maxSteps: 1.5"), "spec.training.maxSteps is 1.5; it takes a whole number"),
    "true epochs": (training("epochs: true"), "spec.training.epochs is true; it takes a number, without quotes"),
    "a rank in quotes": (training("lora: {rank: '16'}"), "spec.training.lora.rank is 16; it takes a number, without quotes"),
    "a rank of none": (training("lora: {rank: 0}"), "spec.training.lora.rank is 0; it must be at least 1"),
    "dropout of all": (training("lora: {dropout: 1}"), "spec.training.lora.dropout is 1; it must be below 1"),
    "a warm-up of all": (training("warmupRatio: 1"), "spec.training.warmupRatio is 1; it must be below 1"),
    "a warm-up in steps": (training("warmupRatio: 100"), "spec.training.warmupRatio is 100; it must be below 1"),
    "rows of no length": (training("maxLength: 0"), "spec.training.maxLength is 0; it must be at least 8"),
    "a seed below 0": (training("seed: -1"), "spec.training.seed is -1; it must be at least 0"),
    "a seed of 33 bits": (training("seed: 4294967296"), "spec.training.seed is 4294967296; it must be at most 2147483647"),
    "all rows held out": (dataset("test: {fraction: 1}"), "spec.dataset.test.fraction is 1; it must be at most 0.9"),
    "percents held out": (dataset("test: {fraction: 10}"), "spec.dataset.test.fraction is 10; it must be at most 0.9"),
    "fractions of all in all": (
        dataset("test: {fraction: 0.5}, validation: {fraction: 0.5}"),
        "spec.dataset.test.fraction and validation.fraction leave no rows to train on; make their sum less than 1",
    ),
    "no test rows for a gate": (
        gate("metric: loss, max: 1", **dataset("test: {fraction: 0}")), "spec.evaluation.gates need test rows; set",
    ),
    "a test of nothing": (dataset("test: {}"), "spec.dataset.test takes exactly one of uri"),
    "a gate in percent": (gate("metric: exactMatch, min: 80"), "spec.evaluation.gates[] g: min is 80, but exactMatch is 1 at"),
    "a gate with two bounds": (gate("metric: loss, min: 0, max: 1"), "spec.evaluation.gates[] takes exactly one of min, max"),
    "a gate without a bound": (gate("metric: loss"), "spec.evaluation.gates[] takes exactly one of min, max"),
    "a metric that is none": (gate("metric: bleu, min: 0.5"), "spec.evaluation.gates[0].metric is bleu; it takes loss, perple"),
    # ── Types ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    "one target without brackets": (
        training("lora: {targets: all-linear}"), "spec.training.lora.targets is all-linear; it takes a list, such as [all-line",
    ),
    "a section that is a word": ({"training": "LoRA"}, "spec.training is LoRA; it takes a mapping of fields"),
    "a section that is a list": ({"training": "[]"}, "spec.training is a list; it takes a mapping of fields"),
    "a section that is empty": ({"training": ""}, "spec.training is empty; it takes a mapping of fields"),
    "gates without dashes": ({"evaluation": "{gates: {name: g}}"}, "spec.evaluation.gates is a mapping; it takes a list"),
    "a gate that is null": ({"evaluation": "{gates: [null]}"}, "spec.evaluation.gates[0] is empty; it takes a mapping of fiel"),
    "packing in quotes": (training("packing: 'no'"), "spec.training.packing is no; it takes true or false, without quotes"),
    "packing as a number": (training("packing: 1"), "spec.training.packing is 1; it takes true or false, without quotes"),
    "columns as a list": (dataset("columns: [q, a]"), "spec.dataset.columns is a list; it takes a mapping"),
    "a column that is a number": (dataset("columns: {prompt: 1}"), "spec.dataset.columns.prompt is 1; it takes text; put it i"),
    "a column of no name": (dataset("columns: {prompt: ''}"), "spec.dataset.columns.prompt is empty; it must not be empty"),
    "a target of no name": (training("lora: {targets: ['']}"), "spec.training.lora.targets[0] is empty; it must not be empty"),
    "no targets": (training("lora: {targets: []}"), "spec.training.lora.targets is a list; it must not be empty"),
    "a number that the API server would refuse once all is trained": (
        serving("replicas: '2'"), "spec.serving.template.replicas is 2; it takes a number, without quotes",
    ),
    "a null in what is handed over": (serving("replicas: null"), "spec.serving.template.replicas is null; remove it, or give"),
    # ── Labels ────────────────────────────────────────────────────────────────────────────────────────────────────────
    "words that are booleans to YAML": (
        dataset("labels: {0: no, 1: yes}"), "spec.dataset.labels: the word of 0 is a boolean to YAML, as are no, yes, off and",
    ),
    "a label twice": (dataset("labels: {1: a, '1': b}"), "job.yaml is not YAML: the key 1 comes twice; remove one of them"),
    "true twice": (dataset("labels: {true: a, 'true ': b, 'true': c}"), "job.yaml is not YAML: the key true comes twice"),
    "one number twice": (dataset("labels: {1: a, 1.0: b}"), "job.yaml is not YAML: of the keys 1, 1.0 two are the same number"),
    "a word of nothing": (dataset("labels: {0: '', 1: a}"), "spec.dataset.labels: 0: '' is empty, or null to YAML; write both"),
    "a label that is null": (dataset("labels: {null: none}"), "spec.dataset.labels: None: 'none' is empty, or null to YAML"),
    "labels as a list": (dataset("labels: [bad, good]"), "spec.dataset.labels is a list; it takes a mapping"),
    "labels of other rows": (dataset("format: Messages, labels: {'0': a}"), "spec.dataset.labels is for rows with labels; set"),
    # ── Places ────────────────────────────────────────────────────────────────────────────────────────────────────────
    "a repository without its scheme": (model("org/model"), "spec.model.uri is org/model; write hf://org/model"),
    "a page of the hub": (
        model("'https://huggingface.co/org/model'"), "spec.model.uri is https://huggingface.co/org/model; write hf://org/model",
    ),
    "one slash": (model("'hf:/org/model'"), "spec.model.uri is hf:/org/model; write hf://org/model"),
    "no colon": (model("hf//org/model"), "spec.model.uri is hf//org/model; write hf://org/model"),
    "another name of a scheme": (rows("'gcs://bucket/rows'"), "spec.dataset.uri is gcs://bucket/rows; write gs://bucket/rows"),
    "a scheme in capitals": (rows("'S3://bucket/rows'"), "spec.dataset.uri is S3://bucket/rows; write s3://bucket/rows"),
    "white space before it": (model("' hf://org/model'"), "spec.model.uri is  hf://org/model; write hf://org/model"),
    "a path": (rows("/data/rows.jsonl"), "spec.dataset.uri is /data/rows.jsonl; write hf://org/name[@revision], pvc://claim/path"),
    "no place": (rows("''"), "spec.dataset.uri is empty; it must not be empty"),
    "no model": ({"model": "{}"}, "spec.model.uri is required; add it"),
    "an S3 server of a claim": (
        {"storage": "{artifacts: {endpoint: 'https://s3'}}"}, "spec.storage.artifacts.endpoint, .region and .caSecretRef go wi",
    ),
    "a server without a scheme": (
        {"storage": "{artifacts: {uri: 's3://a/b', endpoint: 'minio:9000'}}"},
        "spec.storage.artifacts.endpoint is minio:9000; it takes a URL that begins with https:// or http://",
    ),
    # ── Quantities ────────────────────────────────────────────────────────────────────────────────────────────────────
    "a unit that is none": (
        {"parallelism": "{gpu: {memory: 24GB}}"},
        "spec.parallelism.gpu.memory is 24GB; it takes a quantity such as 500m, 2 or 24Gi",
    ),
    "a unit in small letters": ({"parallelism": "{gpu: {memory: 24gi}}"}, "spec.parallelism.gpu.memory is 24gi; it takes a qu"),
    "no unit": (
        {"parallelism": "{gpu: {memory: 24}}"},
        "spec.parallelism.gpu.memory is 24, which is less than 1Mi; write it with its unit, such as 24Gi",
    ),
    "thousandths of a byte": (
        {"stages": "{train: {resources: {limits: {memory: 500m}}}}"},
        "spec.stages.train.resources.limits.memory is 500m, which is less than 1Mi; write it with its unit, such as 500Gi",
    ),
    "a claim of no unit": ({"storage": "{artifacts: {size: 20}}"}, "spec.storage.artifacts.size is 20, which is less than 1Mi"),
    "a request above its limit": (
        {"stages": "{train: {resources: {requests: {memory: 8Gi}, limits: {memory: 4Gi}}}}"},
        "spec.stages.train.resources.requests.memory is 8Gi, above its limit 4Gi; raise that limit",
    ),
    "GPUs among the resources": (
        {"stages": "{train: {resources: {limits: {nvidia.com/gpu: 1}}}}"}, "spec.stages.train.resources.requests and .limits t",
    ),
    "a truth for an amount": ({"storage": "{scratch: {size: true}}"}, "spec.storage.scratch.size is true; it takes text; put"),
    # ── What contradicts itself ───────────────────────────────────────────────────────────────────────────────────────
    "epochs and steps": (training("epochs: 1, maxSteps: 9"), "spec.training takes epochs or maxSteps, not both; remove one"),
    "a micro-batch that does not divide the batch": (
        training("globalBatchSize: 16, microBatchSize: 3"), "spec.training.globalBatchSize must be a multiple of microBatchSiz",
    ),
    "a micro-batch above the batch": (
        training("globalBatchSize: 4, microBatchSize: 8"), "spec.training.globalBatchSize must be a multiple of microBatchSize",
    ),
    "validations without rows": (training("evaluateEverySteps: 5"), "spec.training.evaluateEverySteps needs validation rows;"),
    "quantization without QLoRA": (
        training("method: LoRA, quantization: {bits: 8}"), "spec.training.quantization is for method QLoRA; set method",
    ),
    "DPO of conversations": (
        {**training("objective: DPO"), **dataset("format: Messages")}, "spec.training.objective DPO and ORPO learn from pairs",
    ),
    "accuracy of conversations": (
        gate("metric: accuracy, min: 0.9", **dataset("format: Messages")), "spec.evaluation.gates[].metric accuracy and macroF",
    ),
    "a matrix of weights for Q8_0": (
        {"artifacts": "[{name: q8, format: GGUF, quantization: Q8_0, imatrix: true}]"}, "spec.artifacts[].imatrix is for Q6_K",
    ),
    "a type of another format": (
        {"artifacts": "[{name: q8, format: GGUF, quantization: NF4}]"}, "spec.artifacts[].quantization does not go with its fo",
    ),
}  # fmt: skip

WARNED: dict[str, tuple[Spec, str, str]] = {
    "a hundredth of an epoch": (training("epochs: 0.01"), "RowsNotReached", "spec.training.epochs is 0.01: training ends afte"),
    "a learning rate of 1": (training("learningRate: 1"), "HighLearningRate", "spec.training.learningRate is 1; 0.0002 is cus"),
    "a learning rate of nearly nothing": (
        training("learningRate: 1e-9"), "LowLearningRate", "spec.training.learningRate is 1e-09; 0.0002 is customary for SFT",
    ),
    "a batch above the rows": (
        training("globalBatchSize: 256"), "BatchAboveRows", "spec.training.globalBatchSize is 256, but there are 80 rows",
    ),
    "a warm-up that is most of the run": (
        training("warmupRatio: 0.99"), "LongWarmup", "spec.training.warmupRatio is 0.99: the learning rate rises for that shar",
    ),
    "rows beyond the positions": (
        training("maxLength: 4096"), "RowsBeyondPositions", "the longest row has 64 tokens, and the model was made for 32",
    ),
    "adapters of full training": (
        training("method: Full, lora: {rank: 8}"), "FieldUnused", "spec.training.lora.rank does nothing: method Full trains ev",
    ),
    "a preference's settings without one": (
        training("preference: {beta: 0.5}"), "FieldUnused", "spec.training.preference.beta does nothing: it is for objectives",
    ),
    "a warm-up of a constant rate": (
        training("schedule: constant, warmupRatio: 0.1"), "FieldUnused", "spec.training.warmupRatio does nothing: schedule con",
    ),
    "a budget of GPU-hours on CPUs": (
        {"parallelism": "{gpusPerNode: 0}", "budget": "{gpuHours: 4}"}, "FieldUnused", "spec.budget.gpuHours does nothing: it",
    ),
    "a GPU's memory on CPUs": (
        {"parallelism": "{gpusPerNode: 0, gpu: {memory: 24Gi}}"}, "FieldUnused", "spec.parallelism.gpu.memory does nothing",
    ),
    "a gate in percent that all pass": (
        gate("metric: exactMatch, max: 80"), "FieldUnused",
        "spec.evaluation.gates[0].max does nothing: exactMatch is between 0 and 1, so that every model passes; correct it",
    ),
    "a gate that asks for nothing": (
        gate("metric: rougeL, min: 0"), "FieldUnused", "spec.evaluation.gates[0].min does nothing: rougeL is between 0 and 1",
    ),
    "a gate that asks for a loss above 0": (
        gate("metric: loss, min: 0"), "FieldUnused", "spec.evaluation.gates[0].min does nothing: loss is 0 at least, so that",
    ),
    "a gate that allows any loss of quality": (
        gate("metric: exactMatch, maxRegressionFromMerged: 1, artifact: q4", artifacts=Q4), "FieldUnused",
        "spec.evaluation.gates[0].maxRegressionFromMerged does nothing: exactMatch is between 0 and 1",
    ),
    "a stage that has nothing to do": (
        {"stages": "{quantize: {resources: {limits: {cpu: 2}}}}"}, "FieldUnused", "spec.stages.quantize.resources.limits.cpu d",
    ),
    "files of one file": (
        {"dataset": "{uri: 'https://a/rows.jsonl', files: ['*.jsonl']}"}, "FieldUnused", "spec.dataset.files does nothing",
    ),
    "a seed that chooses nothing": (
        dataset("test: {split: test, seed: 7}"), "FieldUnused", "spec.dataset.test.seed does nothing: no rows are chosen by it",
    ),
}  # fmt: skip

TAKEN: dict[str, tuple[Spec, str, Any]] = {
    "a rate without a point": (training("learningRate: 2e-4"), "training.learning_rate", 2e-4),
    "a whole number with a point": (training("lora: {rank: 16.0}"), "training.lora.rank", 16),
    "an epoch in parts": (training("epochs: 1.5"), "training.epochs", 1.5),
    "labels by numbers": (dataset("labels: {0: bad, 1: good}"), "dataset.labels", {"0": "bad", "1": "good"}),
    "labels by truth values": (dataset("labels: {true: spam, false: ham}"), "dataset.labels", {"true": "spam", "false": "ham"}),
    "words in quotes": (dataset("labels: {0: 'no', 1: 'yes'}"), "dataset.labels", {"0": "no", "1": "yes"}),
    "a quantity with a point": ({"parallelism": "{gpu: {memory: 23.5Gi}}"}, "parallelism.gpu.memory", "23.5Gi"),
    "cores by number": ({"stages": "{train: {resources: {limits: {cpu: 2}}}}"}, "stages.train.resources.limits", {"cpu": "2"}),
    "no test rows": (dataset("test: {fraction: 0}"), "dataset.test.fraction", 0),
}  # fmt: skip


def write(folder: Path, spec: Spec) -> Path:
    file = folder / "job.yaml"
    sections = "".join(f"  {name}: {text}\n" for name, text in (GOOD | spec).items())
    head = "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: job}\nspec:\n"
    file.write_text(head + sections)
    return file


def warnings(job: FineTuneJob, positions: int = POSITIONS) -> list[Remark]:
    """What the operator says of the spec alone, and prepare of the spec with the rows."""
    return [*unused(job.spec), *remarks(run_config(job), DATASET, positions)]


@pytest.mark.parametrize(("spec", "sentence"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_with_the_field_and_the_remedy(tmp_path: Path, spec: Spec, sentence: str) -> None:
    with pytest.raises(FileError) as refused:
        read_document(write(tmp_path, spec))
    said = refused.value.problems[0].removeprefix(f"{tmp_path}/")
    assert said.startswith(sentence)
    assert [word for word in FOREIGN if word in said] == []


@pytest.mark.parametrize(("spec", "reason", "sentence"), WARNED.values(), ids=WARNED)
def test_it_is_taken_with_a_warning(tmp_path: Path, spec: Spec, reason: str, sentence: str) -> None:
    positions = 32 if reason == "RowsBeyondPositions" else POSITIONS
    (remark,) = warnings(read_document(write(tmp_path, spec)).job, positions)
    assert (remark.reason, remark.message[: len(sentence)]) == (reason, sentence)


@pytest.mark.parametrize(("spec", "path", "value"), TAKEN.values(), ids=TAKEN)
def test_it_is_taken_as_it_is_meant(tmp_path: Path, spec: Spec, path: str, value: Any) -> None:
    job = read_document(write(tmp_path, spec)).job
    found: Any = job.spec
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert warnings(job) == []


# ── Whatever is written into whichever field ──────────────────────────────────────────────────────────────────────────

WRONG: tuple[Any, ...] = (None, True, "", "x", "3", -1, 2.5, 10**30, math.nan, math.inf, [], [None], {}, {"x": None}, "A b/c\n")


def schema() -> Schema:
    found: Schema = finetunejobs()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def fields(node: Schema, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of each field, one of each list's items included."""
    if path:
        yield path
    for name, inner in node.get("properties", {}).items():
        yield from fields(inner, (*path, name))
    if "properties" in node.get("items", {}):
        yield from fields(node["items"], (*path, 0))


def with_value(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A spec with one field, and no others than those around it and what is required."""
    spec: dict[str, Any] = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}}
    node: Any = spec
    for name, follows in pairwise(path):
        if isinstance(node, list):
            node.append([] if isinstance(follows, int) else {})
            node = node[0]
        else:
            node = node.setdefault(name, [] if isinstance(follows, int) else {})
    if isinstance(node, list):
        node.append(value)
    else:
        node[path[-1]] = value
    return spec


FIELDS = [path for path in fields(schema()) if "template" not in path]


def test_every_field_is_walked() -> None:
    assert len(FIELDS) > 180


@pytest.mark.parametrize("path", FIELDS, ids=lambda path: ".".join(map(str, path)))
def test_whatever_stands_in_a_field_is_taken_or_named_in_words_of_ours(path: tuple[str | int, ...]) -> None:
    for value in WRONG:
        try:
            FineTuneJob.model_validate({"metadata": {"name": "a", "namespace": "b"}, "spec": with_value(path, value)})
        except ValidationError as error:
            for said in sentences(error, FineTuneJob, ""):
                assert said.startswith(f"spec.{path[0]}")
                assert [word for word in FOREIGN if word in said] == [], said
