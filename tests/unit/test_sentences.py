"""A user's mistakes, each told in one sentence that names the field and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_operator.cli.document import FileError, read_document

GOOD = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: facts}
spec:
  model: {uri: "hf://org/model"}
  dataset: {uri: "configmap://facts/train.jsonl"}
  training: {method: LoRA, learningRate: 0.001}
  artifacts: [{name: q4, format: GGUF, quantization: Q4_K_M}]
"""
DATA = """
---
apiVersion: v1
kind: ConfigMap
metadata: {name: facts}
data: {train.jsonl: "{}"}
"""
ARC = "tasks: [{name: arc}], taskFiles: {uri: 'configmap://arc'}"

RULES = [
    ("learningRate: 0.001", "epochs: 1, maxSteps: 5", "spec.training takes epochs or maxSteps, not both"),
    ("learningRate: 0.001", "precision: FP16}\n  parallelism: {gpusPerNode: 0", "spec.training.precision FP16 needs a GPU"),
    (
        "learningRate: 0.001",
        "objective: KTO, microBatchSize: 1",
        "spec.training.objective KTO compares the rows of a micro-batch; make microBatchSize 2 or more, and globalBatchSize 2",
    ),
    ("learningRate: 0.001", "quantization: {type: FP4}", "spec.training.quantization is for method QLoRA"),
    (
        "method: LoRA",
        "quantization: {bits: 8, doubleQuantization: false}",
        "spec.training.quantization.type, doubleQuantization and products are for 4-bit weights",
    ),
    ("learningRate: 0.001", "reportTo: [mlflow]", "spec.training.reportTo mlflow and wandb need a server and a key"),
    ("quantization: Q4_K_M", "quantization: FP8", "spec.artifacts[].quantization does not go with its format"),
    ("  training:", "  evaluation: {gates: [{name: g, metric: loss}]}\n  training:", "takes exactly one of min, max"),
    (
        "  training:",
        "  evaluation: {gates: [{name: g, metric: loss, max: 1, artifact: q5}]}\n  training:",
        "spec.evaluation.gates[].artifact is not made by this job",
    ),
    (
        "  training:",
        "  stages: {train: {resources: {limits: {nvidia.com/gpu: 1}}}}\n  training:",
        "spec.stages.train.resources.requests and .limits take cpu",
    ),
    (
        "  training:",
        "  evaluation: {tasks: [{name: arc}]}\n  training:",
        "spec.evaluation.taskFiles says where the files of spec.evaluation.tasks lie; set both, or neither",
    ),
    (
        "  training:",
        "  evaluation: {taskFiles: {uri: 'configmap://arc'}}\n  training:",
        "spec.evaluation.taskFiles says where the files of spec.evaluation.tasks lie; set both, or neither",
    ),
    (
        "  training:",
        f"  evaluation: {{{ARC}, gates: [{{name: g, metric: arc_easy/acc, min: 0.5}}]}}\n  training:",
        "spec.evaluation.gates[].metric <task>/<metric> is for a task that is scored; name it in spec.evaluation.tasks",
    ),
    (
        "  training:",
        f"  evaluation: {{{ARC}, gates: [{{name: g, metric: arc/acc, artifact: q4, min: 0.5}}]}}\n  training:",
        "spec.evaluation.gates[].metric <task>/<metric> is not scored for GGUF artifacts; judge merged, or another metric",
    ),
]
ROWS = [
    ("method: LoRA", "method: Lora", "spec.training.method is Lora; it takes 'QLoRA', 'LoRA' or 'Full'"),
    ("learningRate: 0.001", "learningRate: 5", "spec.training.learningRate is 5; it must be at most 1"),
    ("learningRate: 0.001", "learningRate: 0", "spec.training.learningRate is 0; it must be above 0"),
    ("learningRate: 0.001", "maxGradNorm: .inf", "spec.training.maxGradNorm is inf; it takes a finite number"),
    ("learningRate: 0.001", "learningRate: fast", "spec.training.learningRate is fast; it takes a number, without quotes"),
    ("learningRate:", "learning_rates:", "spec.training.learning_rates is not a field; write spec.training.learningRate"),
    ("  training:", "  training: {seed: 1}\n  training:", "is not YAML: the key training comes twice; remove one of them"),
    *(
        ("  training:", f"  evaluation: {{gates: [{{name: g, metric: {metric}, {bound}}}]}}\n  training:", sentence)
        for metric, bound, sentence in (
            ("exactMatch", "min: 80", "gates[] g: min is 80, but exactMatch is 1 at most, so that no model passes; lower it"),
            ("rougeL", "minImprovementOverBase: 5", "g: minImprovementOverBase is 5, but rougeL is 1 at most, so that no"),
            ("perplexity", "max: 0.5", "g: max is 0.5, but perplexity is 1 at least, so that no model passes; raise it"),
            ("loss", "max: -1", "g: max is -1, but loss is 0 at least, so that no model passes; raise it"),
        )
    ),
    (
        "  training:",
        "  evaluation: {gates: [{name: g, metric: rougeX, min: 0.5}]}\n  training:",
        "spec.evaluation.gates[0].metric is rougeX; it takes loss, perplexity, exactMatch, rouge1, ",
    ),
    (
        "  training:",
        "  evaluation: {tasks: [{name: arc}, {name: arc}], taskFiles: {uri: 'configmap://arc'}}\n  training:",
        "spec.evaluation.tasks[].name arc is there twice; give each its own",
    ),
    ("hf://org/model", "org/model", "spec.model.uri is org/model; write hf://org/model"),
    ('  model: {uri: "hf://org/model"}\n', "", "spec.model is required; add it"),
    ("name: q4", "name: Q4", "spec.artifacts[0].name is Q4; it takes small letters, digits and -, such as q4"),
    ("training: {method: LoRA, learningRate: 0.001}", "training: LoRA", "spec.training is LoRA; it takes a mapping"),
    ("metadata: {name: facts}", "metadata: facts", "metadata is facts; it takes a mapping of fields"),
    (
        "metadata: {name: facts}",
        "metadata: {name: Facts}",
        "metadata.name is Facts; it takes small letters, digits, - and ., such",
    ),
    ("metadata: {name: facts}", "metadata: {name: 12}", "metadata.name is 12; it takes text; put it in quotes"),
    ("metadata: {name: facts}", "metadata: {labels: {}}", "metadata.name is required; add it"),
    ("v1alpha1", "v1", "apiVersion is finetune.dev/v1; write finetune.dev/v1alpha1"),
    ("kind: FineTuneJob", "kind: FinetuneJob", "holds 0 FineTuneJobs; write exactly one into the file"),
    ("spec:\n", "spec: [\n", "is not YAML"),
    ("learningRate: 0.001", "learningRate: 2026-13-45", "is not YAML: month must be in 1..12"),
    ("learningRate: 0.001", f"seed: {'9' * 5000}", "is not YAML: Exceeds the limit"),
    ("learningRate: 0.001", f"seed: {'[' * 5000}", "is not YAML: it is nested too deep"),
    (
        "  training:",
        "  serving: {template: {engine: {type: LlamaCpp}, served_name: x}}\n  training:",
        "spec.serving.template.served_name is not a field; write spec.serving.template.servedName",
    ),
    ("[{name: q4,", "[{name: q4, format: GGUF, quantization: F16}, {name: q4,", "spec.artifacts[].name q4 is there twice"),
]


@pytest.mark.parametrize(("old", "new", "sentence"), ROWS + RULES)
def test_mistakes(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    assert old in GOOD
    with pytest.raises(FileError) as error:
        read_document(write(tmp_path, GOOD.replace(old, new, 1)))
    assert sentence in error.value.problems[0]


def test_each_wrong_field_has_its_own_sentence(tmp_path: Path) -> None:
    text = GOOD.replace("method: LoRA", "method: Lora").replace("name: q4", "name: Q4")
    with pytest.raises(FileError) as error:
        read_document(write(tmp_path, text))
    assert len(error.value.problems) == 2


def test_a_gate_on_a_task_is_taken(tmp_path: Path) -> None:
    gates = "gates: [{name: g, metric: arc/acc_norm, min: 0.5}]"
    text = GOOD.replace("  training:", f"  evaluation: {{{ARC}, {gates}}}\n  training:")
    assert read_document(write(tmp_path, text)).job.spec.evaluation.gates[0].metric == "arc/acc_norm"


@pytest.mark.parametrize(
    ("config_map", "sentence"),
    [
        ("data: {a: b}", "a ConfigMap of the file has no metadata.name; add it"),
        ("metadata: [c]\ndata: {a: b}", "a ConfigMap of the file has no metadata.name; add it"),
        ("metadata: {name: c}\ndata: [a]", "data of the ConfigMap c is a list; it takes a mapping of keys to texts"),
        ("metadata: {name: c}\ndata: {a: {b: c}}", "data.a of the ConfigMap c is a mapping; write it as text, in quotes or"),
        ("metadata: {name: c}\ndata: {a: 1}", "data.a of the ConfigMap c is 1; write it as text, in quotes or after |"),
        (
            "metadata: {name: c}\nbinaryData: {a: '*'}",
            "binaryData.a of the ConfigMap c is not base64; write what `base64 FILE`",
        ),
    ],
)
def test_config_maps_that_an_api_server_would_refuse(config_map: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(FileError) as error:
        read_document(write(tmp_path, f"{GOOD}---\nkind: ConfigMap\n{config_map}\n"))
    assert error.value.problems[0].startswith(sentence)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="can't be read: No such file"):
        read_document(tmp_path / "none.yaml")


def test_the_file_holds_the_job_and_its_data(tmp_path: Path) -> None:
    document = read_document(write(tmp_path, GOOD + DATA))
    assert document.job.metadata.namespace == "default"
    assert document.config_maps == {"facts": {"train.jsonl": b"{}"}}
    assert document.job.spec.parallelism.gpus_per_node == 1
    assert read_document(tmp_path / "job.yaml", cpu=True).job.spec.parallelism.gpus_per_node == 0


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path
