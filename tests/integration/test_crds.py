"""The CRDs on a real API server: rules refuse with their sentence, defaults are filled in, every field is described."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from localcluster.api import ApiError
from tests.integration.conftest import FINETUNE, World

from finetune_operator.api.finetunejob import Stages

JOB: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "refused"},
    "spec": {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}},
}
SERVE: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "ModelServe",
    "metadata": {"name": "refused"},
    "spec": {"model": {"uri": "pvc://claim/model"}, "engine": {"type": "VLLM"}},
}
HUB = {"uri": "hf://org/name", "secretRef": {"name": "hub"}}
Q4 = {"name": "q4", "format": "GGUF", "quantization": "Q4_K_M"}
ARC = {"tasks": [{"name": "arc"}], "taskFiles": {"uri": "configmap://arc"}}
SHARED = {"artifacts": {"uri": "s3://bucket/job"}}
GPU = {"requests": {"nvidia.com/gpu": 1}}


def gate(**fields: Any) -> dict[str, Any]:
    return {"evaluation": {"gates": [{"name": "g", "metric": "loss", **fields}]}}


ZONES = {"topologyKey": "topology.kubernetes.io/zone", "minDomains": 2}
PODS: list[tuple[dict[str, Any], str]] = [
    ({"podTemplate": {"labels": {"finetune.dev/job": "x"}}}, "spec.podTemplate.labels can't begin with"),
    (
        {"podTemplate": {"tolerations": [{"operator": "Exists", "value": "x"}]}},
        "spec.podTemplate.tolerations[].value goes with",
    ),
    (
        {"podTemplate": {"topologySpreadConstraints": [ZONES]}},
        "spec.podTemplate.topologySpreadConstraints[].minDomains goes with",
    ),
]
REFUSED_JOBS = [
    *PODS,
    *(
        ({"podTemplate": {field: "a"}, "scheduling": {field: "b"}}, f"spec.podTemplate.{field} and spec.scheduling.{field} say")
        for field in ("priorityClassName", "schedulerName")
    ),
    ({"serving": {"adapterOf": "a", "artifact": "merged"}}, "spec.serving.adapterOf goes without artifact"),
    ({"training": {"epochs": 1, "maxSteps": 5}}, "spec.training takes epochs or maxSteps, not both"),
    ({"training": {"globalBatchSize": 16, "microBatchSize": 3}}, "globalBatchSize must be a multiple of microBatchSize"),
    ({"training": {"reportTo": ["tensorboard", "wandb"]}}, "spec.training.reportTo mlflow and wandb need a server"),
    ({"training": {"evaluateEverySteps": 5}}, "spec.training.evaluateEverySteps needs validation rows"),
    ({"training": {"earlyStopping": {"patience": 2}}}, "spec.training.earlyStopping needs validations to judge by"),
    ({"training": {"keepCheckpoint": "Best"}}, "spec.training.keepCheckpoint Best needs validations to judge by"),
    ({"training": {"precision": "FP16"}, "parallelism": {"gpusPerNode": 0}}, "spec.training.precision FP16 needs a GPU"),
    ({"parallelism": {"numNodes": 3}, "storage": SHARED}, "multiple of numNodes x gpusPerNode x microBatchSize"),
    ({"parallelism": {"gpusPerNode": 2}, "training": {"microBatchSize": 16}}, "multiple of numNodes x gpusPerNode x"),
    ({"parallelism": {"strategy": "DDP"}}, "spec.parallelism.strategy is for several ranks"),
    ({"parallelism": {"launcher": "Ray"}}, "spec.parallelism.launcher Ray is for several ranks"),
    (
        {"parallelism": {"numNodes": 2, "gpusPerNode": 0, "strategy": "FSDP"}, "storage": SHARED},
        "strategy FSDP shares out QLoRA's 4-bit weights on GPUs only",
    ),
    (
        {"training": {"method": "LoRA", "quantization": {"bits": 8}}},
        "spec.training.quantization is for method QLoRA",
    ),
    (
        {"training": {"method": "Full", "quantization": {"type": "FP4"}}},
        "spec.training.quantization is for method QLoRA",
    ),
    (
        {"training": {"quantization": {"bits": 8, "type": "FP4"}}},
        "spec.training.quantization.type, doubleQuantization and products are for 4-bit weights",
    ),
    (
        {"training": {"quantization": {"bits": 8, "doubleQuantization": False}}},
        "spec.training.quantization.type, doubleQuantization and products are for 4-bit weights",
    ),
    (
        {"training": {"quantization": {"products": "FP8"}}, "parallelism": {"gpusPerNode": 0}},
        "spec.training.quantization.products FP8 needs GPUs and BF16",
    ),
    (
        {"training": {"quantization": {"bits": 8}}, "parallelism": {"gpusPerNode": 2, "strategy": "FSDP"}},
        "spec.parallelism.strategy can't share out 8-bit weights; use DDP or Auto",
    ),
    (
        {"parallelism": {"gpusPerNode": 2, "strategy": "ZeRO3"}},
        "spec.parallelism.strategy ZeRO3 can't share out QLoRA's quantized weights",
    ),
    (
        {
            "training": {"method": "LoRA", "gradientCheckpointing": "Selective"},
            "parallelism": {"gpusPerNode": 2, "strategy": "ZeRO3"},
        },
        "spec.training.gradientCheckpointing Selective does not go with adapters under spec.parallelism.strategy ZeRO3",
    ),
    (
        {
            "training": {"method": "Full", "optimizer": "adamw_bnb_8bit"},
            "parallelism": {"gpusPerNode": 2, "strategy": "FSDP"},
        },
        "spec.training.optimizer: bitsandbytes' can't work on the shares of spec.parallelism.strategy",
    ),
    (
        {
            "training": {"keepCheckpoint": "Best", "evaluateEverySteps": 5},
            "dataset": {"uri": "hf://c/d", "validation": {"fraction": 0.1}},
            "parallelism": {"gpusPerNode": 2, "strategy": "FSDP"},
        },
        "spec.training.keepCheckpoint Best needs all of the model on each rank",
    ),
    ({"training": {"lora": {"init": "Orthogonal", "rank": 7}}}, "spec.training.lora.init Orthogonal needs an even rank"),
    ({"training": {"lora": {"init": "PiSSA"}}}, "spec.training.lora.init PiSSA and OLoRA split the weights as they are"),
    *(
        (
            {"training": {"method": "LoRA", "objective": objective, "lora": {"init": "OLoRA"} | lora}},
            "spec.training.lora.init PiSSA and OLoRA go with neither dora, modulesToSave, strategy FSDP nor objectives DPO",
        )
        for objective, lora in (("SFT", {"dora": True}), ("SFT", {"modulesToSave": ["lm_head"]}), ("KTO", {}))
    ),
    (
        {"training": {"method": "Full", "lora": {"modulesToSave": ["lm_head"]}}},
        "spec.training.lora.modulesToSave is for methods QLoRA and LoRA, as Full trains every weight",
    ),
    (
        {"training": {"lora": {"targets": ["q_proj", "lm_head"], "modulesToSave": ["lm_head"]}}},
        "spec.training.lora.targets and modulesToSave name the same module",
    ),
    (
        {"training": {"lora": {"modulesToSave": ["lm_head"]}}, "parallelism": {"gpusPerNode": 2, "strategy": "FSDP"}},
        "spec.parallelism.strategy can't share out spec.training.lora.modulesToSave; use DDP or Auto",
    ),
    ({"training": {"quantization": {"bits": 3}}}, 'supported values: "4", "8"'),
    ({"parallelism": {"numNodes": 2}}, "spec.parallelism.numNodes above 1 needs a store that several nodes reach"),
    ({"training": {"epochs": 0}}, "spec.training.epochs"),
    ({"training": {"method": "Magic"}}, 'supported values: "QLoRA", "LoRA", "Full"'),
    ({"model": {"uri": "ftp://x"}}, "spec.model.uri"),
    ({"dataset": {"uri": "hf://c/d", "test": {"uri": "hf://e/f", "fraction": 0.1}}}, "spec.dataset.test takes exactly one"),
    ({"dataset": {"uri": "hf://c/d", "test": {"seed": 7}}}, "spec.dataset.test takes exactly one of uri"),
    (
        {"dataset": {"uri": "hf://c/d", "validation": {"uri": "hf://e/f", "fraction": 0.1}}},
        "spec.dataset.validation takes exactly one of uri",
    ),
    (
        {"dataset": {"uri": "hf://c/d", "test": {"fraction": 0.5}, "validation": {"fraction": 0.5}}},
        "leave no rows to train on",
    ),
    ({"dataset": {"uri": "hf://c/d", "test": {"split": "train"}}}, "can't be the split that is trained on"),
    (
        {"dataset": {"uri": "hf://c/d", "test": {"split": "test"}, "validation": {"split": "test"}}},
        "are the same rows, but nothing that chooses a checkpoint may score it",
    ),
    (
        {"dataset": {"uri": "hf://c/d", "test": {"uri": "hf://e/f", "stratifyBy": "kind"}}},
        "spec.dataset.test.stratifyBy says how a fraction",
    ),
    (
        {"dataset": {"uri": "hf://c/d", "validation": {"uri": "hf://e/f", "stratifyBy": "kind"}}},
        "spec.dataset.validation.stratifyBy says how a fraction",
    ),
    ({"dataset": {"uri": "hf://c/d", "format": "Text", "labels": {"0": "no"}}}, "spec.dataset.labels is for rows with labels"),
    (
        gate(min=0.9, metric="accuracy") | {"dataset": {"uri": "hf://c/d", "format": "Messages"}},
        "spec.evaluation.gates[].metric accuracy and macroF1 are for rows with labels",
    ),
    (
        gate(min=0.9, metric="preferenceAccuracy") | {"dataset": {"uri": "hf://c/d", "format": "Messages"}},
        "spec.evaluation.gates[].metric preferenceAccuracy is for rows with a chosen and a rejected answer",
    ),
    (
        {"training": {"objective": "DPO"}, "dataset": {"uri": "hf://c/d", "format": "Messages"}},
        "spec.training.objective DPO and ORPO learn from pairs of answers",
    ),
    (
        {"training": {"objective": "KTO"}, "dataset": {"uri": "hf://c/d", "format": "Messages"}},
        "spec.training.objective KTO learns from desirable and undesirable answers",
    ),
    (
        {"dataset": {"uri": "hf://c/d", "format": "UnpairedPreference"}},
        "spec.dataset.format UnpairedPreference is for objective KTO",
    ),
    ({"training": {"objective": "Distillation"}}, "spec.training.distillation names the teacher"),
    (
        {"training": {"distillation": {"teacher": {"uri": "hf://a/b"}}}},
        "spec.training.distillation names the teacher of objective Distillation; set both, or neither",
    ),
    ({"training": {"objective": "DPO", "neftuneNoiseAlpha": 5}}, "are for objective SFT"),
    ({"training": {"objective": "ORPO", "completionOnlyLoss": False}}, "are for objective SFT"),
    ({"training": {"objective": "DPO", "preference": {"desirableWeight": 2}}}, "are for objective KTO"),
    ({"training": {"objective": "KTO", "microBatchSize": 1}}, "spec.training.objective KTO compares the rows"),
    ({"training": {"objective": "KTO", "globalBatchSize": 1}}, "spec.training.objective KTO compares the rows"),
    (
        {"training": {"objective": "KTO", "globalBatchSize": 2}, "parallelism": {"gpusPerNode": 2}},
        "spec.training.objective KTO compares the rows",
    ),
    (
        {"training": {"objective": "DPO"}, "parallelism": {"gpusPerNode": 2, "strategy": "FSDP"}},
        "spec.parallelism.strategy can't share out weights for spec.training.objective DPO",
    ),
    (gate(min=0.9, metric="bleu"), "should match '^(loss|perplexity|exactMatch|rouge1|"),
    ({"evaluation": {"tasks": [{"name": "arc"}]}}, "spec.evaluation.taskFiles says where the files"),
    ({"evaluation": {"taskFiles": ARC["taskFiles"]}}, "spec.evaluation.taskFiles says where the files"),
    ({"evaluation": ARC | {"taskFiles": {"uri": "hf://a/b"}}}, "spec.evaluation.taskFiles.uri"),
    ({"evaluation": ARC | {"tasks": [{"name": "arc"}, {"name": "arc"}]}}, "Duplicate value"),
    (
        {"evaluation": ARC | gate(min=0.9, metric="gsm8k/exact_match")["evaluation"]},
        "spec.evaluation.gates[].metric <task>/<metric> is for a task that is scored",
    ),
    (
        {"evaluation": ARC | gate(min=0.9, metric="arc/acc", artifact="q4")["evaluation"], "artifacts": [Q4]},
        "spec.evaluation.gates[].metric <task>/<metric> is not scored for GGUF artifacts",
    ),
    ({"artifacts": [Q4, Q4]}, "Duplicate value"),
    ({"artifacts": [Q4 | {"name": "merged"}]}, "spec.artifacts[].name can't be adapter, merged or base"),
    ({"artifacts": [Q4 | {"quantization": "FP8"}]}, "quantization does not go with its format"),
    ({"artifacts": [Q4 | {"format": "BitsAndBytes", "quantization": "W4A16"}]}, "quantization does not go with its format"),
    ({"artifacts": [Q4 | {"quantization": "AWQ"}]}, "quantization does not go with its format"),
    ({"artifacts": [Q4 | {"format": "CompressedTensors"}]}, "quantization does not go with its format"),
    ({"artifacts": [Q4 | {"quantization": "Q8_0", "imatrix": True}]}, "spec.artifacts[].imatrix is for Q6_K, Q5_K_M and"),
    (gate(), "spec.evaluation.gates[] takes exactly one of min, max"),
    (gate(min=0.1, max=0.5), "spec.evaluation.gates[] takes exactly one of min, max"),
    (gate(max=0.5, artifact="q4"), "spec.evaluation.gates[].artifact is not made by this job"),
    (gate(maxRegressionFromMerged=0.1), "maxRegressionFromMerged compares an artifact with the merged model"),
    (gate(max=2) | {"dataset": {"uri": "hf://c/d", "test": {"fraction": 0}}}, "spec.evaluation.gates need test rows"),
    ({"publish": [{"uri": "s3://b/p", "artifacts": ["q4"]}]}, "spec.publish[].artifacts has one that is not made by"),
    ({"publish": [{"uri": "hf://org/name/more", "secretRef": {"name": "hub"}}]}, "spec.publish[0].uri"),
    ({"publish": [{"uri": "hf://org/name"}]}, "spec.publish[].secretRef is needed to write to hf://"),
    ({"publish": [HUB, HUB | {"artifacts": ["adapter"]}]}, "spec.publish[].uri names one hf:// repository twice"),
    ({"serving": {"artifact": "q4"}}, "spec.serving.artifact is not made by this job"),
    ({"storage": {"artifacts": {"endpoint": "http://s3"}}}, ".region and .caSecretRef go with an s3:// uri only"),
    ({"storage": {"artifacts": {"uri": "pvc://c/x", "caSecretRef": {"name": "ca"}}}}, "go with an s3:// uri only"),
    ({"storage": {"artifacts": {"size": "much"}}}, "spec.storage.artifacts.size"),
    *(
        ({"stages": {stage: {"resources": GPU}}}, f"spec.stages.{stage}.resources.requests and .limits take cpu")
        for stage in Stages.model_fields
    ),
]
OLLAMA: dict[str, Any] = {"engine": {"type": "Ollama", "maxModelLength": 512}}
LLAMA: dict[str, Any] = {"engine": {"type": "LlamaCpp"}}
ASKS_CPU: dict[str, Any] = {"resources": {"requests": {"cpu": "2"}}}
REFUSED_SERVES = [
    *PODS,
    ({"model": {}}, "spec.model takes exactly one of jobRef"),
    ({"model": {"uri": "pvc://c/m", "jobRef": {"name": "a"}}}, "spec.model takes exactly one of jobRef"),
    ({"model": {"jobRef": {"name": "a"}, "region": "eu"}}, "go with uri"),
    ({"engine": {"type": "LlamaCpp"}, "lora": {}}, "spec.lora needs spec.engine.type VLLM"),
    ({"adapters": [{"name": "a", "jobRef": {"name": "a"}}]}, "spec.adapters needs room in the engine"),
    ({"engine": {"type": "Ollama"}}, "spec.engine.type Ollama needs spec.engine.maxModelLength"),
    (OLLAMA | {"servedName": "a/b/c/d"}, "spec.servedName is none that Ollama can have"),
    (OLLAMA | {"servedName": "team.a/facts"}, "spec.servedName is none that Ollama can have"),
    (OLLAMA | {"rollout": {"gate": {"heldOut": {}}}}, "spec.engine.type Ollama and Transformers take texts alone"),
    ({"lora": {}, "adapters": [{"name": "a"}]}, "spec.adapters[] takes either jobRef"),
    ({"lora": {}, "adapters": [{"name": "a", "uri": "pvc://a/b"}]}, "spec.adapters[] takes either jobRef"),
    ({"model": {"jobRef": {"name": "a"}, "caSecretRef": {"name": "ca"}}}, "go with uri"),
    ({"model": {"jobRef": {"name": "a"}, "evaluation": f"s3://b/evaluate/{'e' * 20}"}}, "go with uri"),
    (
        {"model": {"uri": "pvc://a/b", "evaluation": f"s3://b/evaluate/{'e' * 20}"}},
        "spec.model.evaluation must lie in a claim or in a bucket, as uri does",
    ),
    (
        {"model": {"uri": "az://a/b", "evaluation": f"s3://b/evaluate/{'e' * 20}"}},
        "spec.model.evaluation must lie in a claim or in a bucket, as uri does",
    ),
    ({"model": {"uri": "pvc://c/m", "endpoint": "http://s3"}}, "go with an s3:// uri only"),
    ({"model": {"uri": "pvc://c/m", "caSecretRef": {"name": "ca"}}}, "go with an s3:// uri only"),
    ({"engine": {"type": "LlamaCpp"}, "parallelism": {"tensor": 2}}, "spec.parallelism.tensor above 1 needs"),
    ({"parallelism": {"tensor": 2, "gpus": False}}, "spec.parallelism.tensor counts GPUs"),
    ({"resources": GPU}, "spec.resources.requests and .limits take cpu"),
    ({"replicas": -1}, "spec.replicas"),
    ({"rollout": {"strategy": "Recreate", "promotion": "Manual"}}, "spec.rollout.strategy Recreate stops the live revision"),
    (
        {"rollout": {"strategy": "Recreate", "canary": {"steps": [{"weight": 10}]}}},
        "spec.rollout.canary has nobody to share the traffic with",
    ),
    ({"rollout": {"canary": {"steps": [{"weight": 50}, {"weight": 50}]}}}, "spec.rollout.canary.steps must rise"),
    ({"rollout": {"canary": {"steps": [{"weight": 50}, {"weight": 20}]}}}, "spec.rollout.canary.steps must rise"),
    ({"rollout": {"canary": {"steps": [{"weight": 0}]}}}, "spec.rollout.canary.steps[0].weight"),
    ({"rollout": {"canary": {"steps": [{"weight": 101}]}}}, "spec.rollout.canary.steps[0].weight"),
    ({"rollout": {"canary": {"steps": []}}}, "spec.rollout.canary.steps"),
    ({"route": {"gateway": {"name": "g"}, "hostname": "*.example.com"}}, "spec.route.hostname"),
    (
        {"rollout": {"strategy": "Recreate", "gate": {"heldOut": {}}}},
        "spec.rollout.gate.heldOut and judge have nothing to compare with",
    ),
    (
        {"rollout": {"gate": {"judge": {"baseUrl": "http://j/v1", "model": "m", "maxCalls": 10}}}},
        "spec.rollout.gate.judge.maxCalls must be at least twice minPairs",
    ),
    ({"model": {"uri": "pvc://c/m"}, "rollout": {"gate": {"heldOut": {}}}}, "set spec.model.evaluation beside uri"),
    ({"rollout": {"gate": {"heldOut": {"rows": 10}}}}, "spec.rollout.gate.heldOut.minRows must be at most rows"),
    ({"rollout": {"pinnedRevision": "latest"}}, "spec.rollout.pinnedRevision"),
    ({"autoscaling": {"minReplicas": 3, "maxReplicas": 2}}, "spec.autoscaling.minReplicas must be at most maxReplicas"),
    (LLAMA | {"autoscaling": {"maxReplicas": 2, "metric": "CacheUsage"}}, "metric CacheUsage is measured by VLLM only"),
    (LLAMA | {"autoscaling": {"maxReplicas": 2, "metric": "CPU"}}, "set spec.resources.requests.cpu"),
    (
        ASKS_CPU | {"autoscaling": {"maxReplicas": 2, "metric": "CPU", "target": "0.8"}},
        "spec.autoscaling.target of the metric CPU is a whole number of percent",
    ),
]


def _create(world: World, plural: str, base: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    body = copy.deepcopy(base)
    body["spec"] |= spec
    path = f"{FINETUNE}/namespaces/default/{plural}?dryRun=All&fieldValidation=Strict"
    return world.api.request("POST", path, body)


@pytest.mark.parametrize(("spec", "sentence"), REFUSED_JOBS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_wrong_job_is_refused_with_the_field_named(world: World, spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiError) as refusal:
        _create(world, "finetunejobs", JOB, spec)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(("spec", "sentence"), REFUSED_SERVES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_wrong_serve_is_refused_with_the_field_named(world: World, spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiError) as refusal:
        _create(world, "modelserves", SERVE, spec)
    assert sentence in str(refusal.value)


def test_every_rule_is_broken_by_some_row() -> None:
    from finetune_operator.api.rules.finetunejob import RULES as JOB_RULES
    from finetune_operator.api.rules.modelserve import RULES as SERVE_RULES

    for rules, rows in ((JOB_RULES, REFUSED_JOBS), (SERVE_RULES, REFUSED_SERVES)):
        written = [r.message for r in rules if not r.of_an_edit]  # what no edit may do has tests of its own
        untested = [message for message in written if not any(sentence in message for _, sentence in rows)]
        assert untested == []


def test_defaults_that_define_behaviour_are_stored(world: World) -> None:
    spec = _create(world, "finetunejobs", JOB, {})["spec"]
    assert spec["training"]["method"] == "QLoRA"
    assert spec["training"]["lora"]["targets"] == ["all-linear"]
    assert spec["dataset"]["test"] == {"fraction": 0.1, "seed": 42}
    assert spec["retry"]["maxRetries"] == 3
    assert "microBatchSize" not in spec["training"], "what the memory estimate decides stays unset"
    assert "epochs" not in spec["training"]


def test_an_object_that_nobody_has_seen_is_in_progress(world: World) -> None:
    assert _create(world, "finetunejobs", JOB, {})["status"] == {"observedGeneration": -1}
    assert _create(world, "modelserves", SERVE, {})["status"] == {"observedGeneration": -1}


def test_good_objects_with_everything_are_taken(world: World) -> None:
    fp8 = {"name": "fp8", "format": "CompressedTensors", "quantization": "FP8"}
    w4 = {"name": "w4", "format": "CompressedTensors", "quantization": "W4A16"}
    awq = {"name": "awq", "format": "CompressedTensors", "quantization": "AWQ"}
    nf4 = {"name": "nf4", "format": "BitsAndBytes", "quantization": "NF4"}
    gates = [
        {"name": "better", "metric": "loss", "minImprovementOverBase": 0.1},
        {"name": "q4-close", "metric": "rougeL", "artifact": "q4", "maxRegressionFromMerged": 0.02, "action": "Warn"},
    ]
    _create(
        world,
        "finetunejobs",
        JOB,
        {
            "training": {"lora": {"modulesToSave": ["embed_tokens", "lm_head"]}},
            "artifacts": [Q4 | {"imatrix": True}, fp8, w4, awq, nf4],
            "evaluation": {
                "gates": [*gates, {"name": "arc", "metric": "arc_easy/acc_norm,none", "min": 0.3}],
                "tasks": [{"name": "arc_easy", "limit": 100, "numFewshot": 5}, {"name": "arc"}],
                "taskFiles": {"uri": "pvc://benchmarks/arc"},
            },
            "publish": [
                {"uri": "s3://b/p", "artifacts": ["adapter", "q4"]},
                {"uri": "az://b/p"},
                HUB,
                HUB | {"uri": "hf://org/name@v1"},
            ],
            "serving": {"artifact": "fp8", "template": {"engine": {"type": "VLLM"}, "replicas": 2}},
            "stages": {"train": {"resources": {"requests": {"cpu": 4, "memory": "16Gi"}}}},
            "storage": {"artifacts": {"uri": "s3://bucket/x", "endpoint": "http://s3:9000", "region": "eu"}},
        },
    )
    _create(world, "modelserves", SERVE, {"model": {"jobRef": {"name": "a", "artifact": "q4"}}})
    steps = [{"weight": 1, "pauseSeconds": 60}, {"weight": 50}, {"weight": 100, "pauseSeconds": 60}]
    route = {"gateway": {"name": "public", "namespace": "infra", "sectionName": "https"}, "hostname": "bot.example.com"}
    _create(world, "modelserves", SERVE, {"rollout": {"canary": {"steps": steps}}, "route": route})


def test_who_manages_a_job_is_said_from_the_start(world: World) -> None:
    path = f"{FINETUNE}/namespaces/default/finetunejobs/managed"
    mine = JOB | {"metadata": {"name": "managed"}, "spec": JOB["spec"] | {"managedBy": "example.com/elsewhere"}}
    with pytest.raises(ApiError, match=r"spec\.managedBy"):
        world.api.apply(path, mine | {"spec": mine["spec"] | {"managedBy": "nobody"}})
    world.api.apply(path, mine)
    try:
        world.api.apply(path, mine | {"spec": mine["spec"] | {"suspend": True}})
        for spec in (JOB["spec"], mine["spec"] | {"managedBy": "example.com/another"}):
            with pytest.raises(ApiError, match=r"spec\.managedBy can't be changed"):
                world.api.apply(path, mine | {"spec": spec})
    finally:
        world.api.request("DELETE", path)


@pytest.mark.parametrize("kind", ["finetunejobs", "modelserves"])
def test_kubectl_explain_describes_every_field_of_spec(world: World, kind: str) -> None:
    document = world.api.request("GET", "/openapi/v3/apis/finetune.dev/v1alpha1")
    name = {"finetunejobs": "FineTuneJob", "modelserves": "ModelServe"}[kind]
    schema = document["components"]["schemas"][f"dev.finetune.v1alpha1.{name}"]["properties"]["spec"]
    fields = dict(_fields(schema, f"{kind}.spec"))
    assert len(fields) > 20
    assert [path for path, text in fields.items() if len(text) < 5] == []
    explained = world.kubectl("explain", f"{kind}.spec")
    assert all(f"  {field}\t" in explained for field in schema["properties"])


def test_kubectl_explain_tells_units_and_defaults(world: World) -> None:
    text = " ".join(world.kubectl("explain", "ftj.spec.training").split())
    assert "Longest row in tokens, prompt and completion together. Default: 2048." in text
    assert "Peak learning rate. Unset: 2e-4 for QLoRA and LoRA" in text


def test_kubectl_get_has_the_columns(world: World) -> None:
    path = f"{FINETUNE}/namespaces/default/finetunejobs/columns"
    world.api.apply(path, JOB | {"metadata": {"name": "columns"}})
    try:
        header = world.kubectl("get", "ftj", "columns").splitlines()[0].split()
        assert header == ["NAME", "STAGE", "PROGRESS", "LOSS", "ETA", "READY", "REASON", "AGE"]
        assert "finetunejob.finetune.dev/columns" in world.kubectl("get", "finetune", "-o", "name")
    finally:
        world.api.request("DELETE", path)


def _fields(schema: dict[str, Any], path: str) -> Any:
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}.{name}", inner.get("description", "")
        yield from _fields(inner, f"{path}.{name}")
        yield from _fields(inner.get("items", {}), f"{path}.{name}[]")
