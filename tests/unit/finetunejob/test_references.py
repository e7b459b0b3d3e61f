"""What the spec names and the namespace lacks."""

from __future__ import annotations

from typing import Any

import pytest
from tests.builders import Namespace, data_config_map, make_job
from tests.story import Story

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.decision import Ref
from finetune_operator.finetunejob import admission, policy
from finetune_trainer.contract.places import S3_KEYS

S3: dict[str, Any] = {"artifacts": {"uri": "s3://bucket/x", "secretRef": {"name": "store"}}}
HUB = {"uri": "hf://a/b", "secretRef": {"name": "hub"}}

ROWS: list[tuple[dict[str, Any], Ref, dict[str, Any] | None, str, str]] = [
    ({}, Ref("ConfigMap", "facts"), None, "ConfigMapNotFound", "spec.dataset.uri names the ConfigMap facts"),
    (
        {},
        Ref("ConfigMap", "facts"),
        data_config_map(keys=("train.jsonl",)),
        "ConfigMapKeyNotFound",
        "the ConfigMap facts, which spec.dataset.test.uri names, has no key test.jsonl; it has train.jsonl",
    ),
    (
        {"model": {"uri": "hf://a/b", "chatTemplate": {"configMapKeyRef": {"name": "chat", "key": "short.jinja"}}}},
        Ref("ConfigMap", "chat"),
        None,
        "ConfigMapNotFound",
        "spec.model.chatTemplate.configMapKeyRef names the ConfigMap chat, which does not exist",
    ),
    (
        {"model": {"uri": "hf://a/b", "chatTemplate": {"configMapKeyRef": {"name": "facts", "key": "short.jinja"}}}},
        Ref("ConfigMap", "facts"),
        data_config_map(),
        "ConfigMapKeyNotFound",
        "which spec.model.chatTemplate.configMapKeyRef names, has no key short.jinja",
    ),
    ({"model": HUB}, Ref("Secret", "hub"), None, "SecretNotFound", "spec.model.secretRef names the Secret hub"),
    ({"model": HUB}, Ref("Secret", "hub"), {"metadata": {}, "data": {"token": ""}}, "SecretKeyNotFound", "HF_TOKEN"),
    ({"storage": S3}, Ref("Secret", "store"), None, "SecretNotFound", "spec.storage.artifacts.secretRef names"),
    (
        {"storage": {"artifacts": S3["artifacts"] | {"secretRef": None, "caSecretRef": {"name": "ca"}}}},
        Ref("Secret", "ca"),
        None,
        "SecretNotFound",
        "spec.storage.artifacts.caSecretRef names the Secret ca, which does not exist",
    ),
    (
        {"storage": {"artifacts": S3["artifacts"] | {"secretRef": None, "caSecretRef": {"name": "ca"}}}},
        Ref("Secret", "ca"),
        {"metadata": {}, "data": {"tls.crt": ""}},
        "SecretKeyNotFound",
        "the Secret ca, which spec.storage.artifacts.caSecretRef names, has no key ca.crt; it has tls.crt",
    ),
    (
        {"training": {"reportTo": ["mlflow"], "reportSecretRef": {"name": "curves"}}},
        Ref("Secret", "curves"),
        {"metadata": {}, "data": {"MLFLOW_TRACKING_TOKEN": ""}},
        "SecretKeyNotFound",
        "the Secret curves, which spec.training.reportSecretRef names, has no key MLFLOW_TRACKING_URI",
    ),
    (
        {"model": {"uri": "pvc://models/llama"}},
        Ref("PersistentVolumeClaim", "models"),
        None,
        "ClaimNotFound",
        "spec.model.uri names the PersistentVolumeClaim models, which does not exist in this namespace; create it",
    ),
    (
        {"model": {"uri": "pvc://models/llama"}},
        Ref("PersistentVolumeClaim", "models"),
        {"metadata": {"deletionTimestamp": "2026-11-23T15:00:00Z"}},
        "ClaimNotFound",
        "is being deleted",
    ),
    (
        {
            "parallelism": {"gpusPerNode": 0, "numNodes": 2},
            "storage": {"artifacts": {"uri": "pvc://store/x"}},
        },
        Ref("PersistentVolumeClaim", "store"),
        {"metadata": {}, "spec": {"accessModes": ["ReadWriteOnce"]}},
        "ClaimNotShared",
        "take one with access mode ReadWriteMany, or s3://",
    ),
    (
        {"parallelism": {"gpusPerNode": 0, "numNodes": 2}, "model": {"uri": "pvc://models/llama"}},
        Ref("PersistentVolumeClaim", "models"),
        {"metadata": {}, "spec": {"accessModes": ["ReadWriteOnce"]}},
        "ClaimNotShared",
        "spec.model.uri names the PersistentVolumeClaim models, which one node at a time can mount",
    ),
    (
        {
            "parallelism": {"gpusPerNode": 0, "numNodes": 2},
            "training": {"objective": "Distillation", "distillation": {"teacher": {"uri": "pvc://models/llama"}}},
        },
        Ref("PersistentVolumeClaim", "models"),
        {"metadata": {}, "spec": {"accessModes": ["ReadWriteOnce"]}},
        "ClaimNotShared",
        "take one with access mode ReadWriteMany or ReadOnlyMany, or s3://",
    ),
    (
        {"training": {"objective": "Distillation", "distillation": {"teacher": HUB}}},
        Ref("Secret", "hub"),
        None,
        "SecretNotFound",
        "spec.training.distillation.teacher.secretRef names the Secret hub",
    ),
    (
        {"training": {"objective": "Distillation", "distillation": {"teacher": {"uri": "pvc://models/llama"}}}},
        Ref("PersistentVolumeClaim", "models"),
        None,
        "ClaimNotFound",
        "spec.training.distillation.teacher.uri names the PersistentVolumeClaim models",
    ),
    (
        {"publish": [HUB | {"secretRef": None}, {"uri": "pvc://shelf/out"}]},
        Ref("PersistentVolumeClaim", "shelf"),
        None,
        "ClaimNotFound",
        "spec.publish[1].uri names the PersistentVolumeClaim shelf, which does not exist",
    ),
    (
        {"dataset": {"uri": "hf://c/d", "secretRef": {"name": "hub"}}},
        Ref("Secret", "hub"),
        None,
        "SecretNotFound",
        "spec.dataset.secretRef names the Secret hub, which does not exist",
    ),
    (
        {"dataset": {"uri": "hf://c/d", "validation": {"uri": "configmap://held"}}},
        Ref("ConfigMap", "held"),
        None,
        "ConfigMapNotFound",
        "spec.dataset.validation.uri names the ConfigMap held, which does not exist",
    ),
    (
        {"publish": [HUB]},
        Ref("Secret", "hub"),
        None,
        "SecretNotFound",
        "spec.publish[0].secretRef names the Secret hub, which does not exist",
    ),
    (
        {},
        Ref("ConfigMap", "facts"),
        {"metadata": {}},
        "ConfigMapKeyNotFound",
        "the ConfigMap facts, which spec.dataset.uri names, has no key train.jsonl; it has none",
    ),
    (
        {"evaluation": {"tasks": [{"name": "arc"}], "taskFiles": {"uri": "configmap://arc"}}},
        Ref("ConfigMap", "arc"),
        None,
        "ConfigMapNotFound",
        "spec.evaluation.taskFiles.uri names the ConfigMap arc, which does not exist",
    ),
    (
        {"publish": [{"uri": "pvc://shelf/x"}]},
        Ref("PersistentVolumeClaim", "shelf"),
        None,
        "ClaimNotFound",
        "spec.publish[0].uri",
    ),
]


@pytest.mark.parametrize(("spec", "ref", "found", "reason", "message"), ROWS)
def test_missing(spec: dict[str, Any], ref: Ref, found: Any, reason: str, message: str) -> None:
    story = Story(make_job(**spec), space=Namespace(data_config_map()))
    assert ref in policy.reads(story.typed).named
    story.space.named[ref] = found
    assert story.passes() == []
    assert story.conditions()["Stalled"] == ("True", reason)
    stalled = next(c for c in story.job["status"]["conditions"] if c["type"] == "Stalled")
    assert message in stalled["message"]
    assert story.events == [reason], "a person is told, and once"
    assert 2 <= (story.decide().requeue_after or 0) <= 300  # it may appear without an event


def test_what_is_applied_after_the_job_that_names_it_stalls_nothing() -> None:
    story = Story(make_job(dataset={"uri": "configmap://island/train.jsonl"}))
    story.one_pass()
    (waits,) = (c for c in story.job["status"]["conditions"] if c["type"] == "Reconciling")
    assert (waits["status"], waits["reason"], story.events) == ("True", "ConfigMapNotFound", [])
    assert story.decide().requeue_after == 2
    story.space.named[Ref("ConfigMap", "island")] = {"metadata": {"name": "island"}, "data": {"train.jsonl": "{}"}}
    assert "job prepare" in story.one_pass()


def test_what_stays_missing_is_looked_at_less_and_less_often() -> None:
    story = Story(make_job(model={"uri": "pvc://missing/model"}), space=Namespace(data_config_map()))
    story.one_pass()
    waits = []
    for minutes in (0, 4, 60):
        story.minute += minutes
        waits.append(story.decide().requeue_after)
    assert waits == [2, 60, 300]


def test_a_secret_that_may_be_read_by_name_only_is_taken_as_it_is() -> None:
    story = Story(make_job(model=HUB), space=Namespace(data_config_map()))
    story.space.named[Ref("Secret", "hub")] = {"metadata": {"name": "hub"}}
    assert story.passes(1)[-1] == "job prepare"


def test_the_claim_that_the_operator_makes_may_be_absent() -> None:
    story = Story(make_job(), space=Namespace(data_config_map()))
    story.space.named[Ref("PersistentVolumeClaim", "facts-artifacts")] = None
    assert story.passes(1) == ["create PersistentVolumeClaim", "create ConfigMap", "job prepare"]


def test_a_claim_that_goes_while_results_are_on_it_is_made_again_for_another_run_only() -> None:
    story, claim = Story(make_job(), space=Namespace(data_config_map())), Ref("PersistentVolumeClaim", "facts-artifacts")
    story.passes(2)
    story.succeed()
    story.space.named[claim] = None
    assert story.passes() == ["job train"]
    story.edit(training={"maxSteps": 3})
    assert "create PersistentVolumeClaim" in story.passes()


def test_a_key_may_be_binary() -> None:
    found = data_config_map(keys=("train.jsonl",)) | {"binaryData": {"test.jsonl": ""}}
    assert Story(make_job(), space=Namespace(found)).passes(1)[-1] == "job prepare"


def test_secrets_with_the_same_keys_are_mounts_of_their_own_that_say_whose_they_are() -> None:
    data = {"uri": "s3://data/rows", "secretRef": {"name": "mine"}, "test": {"fraction": 0.1}}
    model = {"uri": "s3://models/tiny", "secretRef": {"name": "store"}}
    job = make_job(dataset=data, storage=S3, model=model)
    space = Namespace()
    for name in ("mine", "store"):
        space.named[Ref("Secret", name)] = {"metadata": {"name": name}, "data": dict.fromkeys(S3_KEYS, "")}
    story = Story(job, space=space)
    story.passes(2)
    pod = next(body for body in story.created if body["kind"] == "Job")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    mounts = {m["mountPath"]: secrets[m["name"]] for m in container["volumeMounts"] if m["name"] in secrets}
    folder = "/mnt/finetune/secrets"
    assert mounts == {f"{folder}/model": "store", f"{folder}/dataset": "mine", f"{folder}/store": "store"}
    assert len(secrets) == 2, "one volume a Secret, however many it opens"
    assert "envFrom" not in container
    assert not any("secretKeyRef" in str(variable) for variable in container["env"])


def test_training_alone_reads_the_secret_of_the_trackers() -> None:
    curves = {"metadata": {"name": "curves"}, "data": {"MLFLOW_TRACKING_URI": ""}}
    story = Story(make_job(training={"reportTo": ["mlflow"], "reportSecretRef": {"name": "curves"}}))
    story.space.named[Ref("Secret", "curves")] = curves
    story.to_the_end()
    jobs = [body for body in story.created if body["kind"] == "Job"]
    mounted = [body["metadata"]["labels"]["finetune.dev/step"] for body in jobs if "'curves'" in str(body)]
    assert (mounted, len(jobs)) == (["train"], 6)


@pytest.mark.parametrize(
    ("nodes", "modes", "starts"), [(1, "ReadWriteOnce", True), (2, "ReadWriteOnce", False), (2, "ReadWriteMany", True)]
)
def test_a_claim_must_be_shared_where_pods_on_several_nodes_mount_it(nodes: int, modes: str, starts: bool) -> None:
    job = make_job(parallelism={"gpusPerNode": 0, "numNodes": nodes}, storage={"artifacts": {"uri": "pvc://store/x"}})
    story = Story(job, space=Namespace(data_config_map()))
    story.space.named[Ref("PersistentVolumeClaim", "store")] = {"metadata": {}, "spec": {"accessModes": [modes]}}
    assert bool(story.passes()) is starts


TEACHER = {"objective": "Distillation", "method": "LoRA", "distillation": {"teacher": {"uri": "pvc://models/large"}}}


@pytest.mark.parametrize("spec", [{"model": {"uri": "pvc://models/small"}}, {"training": TEACHER}])
@pytest.mark.parametrize(("modes", "starts"), [("ReadWriteOnce", False), ("ReadOnlyMany", True), ("ReadWriteMany", True)])
def test_a_claim_with_a_model_is_only_read_by_several_nodes(spec: dict[str, Any], modes: str, starts: bool) -> None:
    job = make_job(parallelism={"gpusPerNode": 0, "numNodes": 2}, storage={"artifacts": {"uri": "pvc://store/x"}}, **spec)
    story = Story(job, space=Namespace(data_config_map()))
    for claim, mode in {"store": "ReadWriteMany", "models": modes}.items():
        story.space.named[Ref("PersistentVolumeClaim", claim)] = {"metadata": {}, "spec": {"accessModes": [mode]}}
    assert bool(story.passes()) is starts


SERVING_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"engine": {"type": "LlamaCpp"}, "model": {}}, "spec.serving.template.model is set by the job; remove it"),
    ({}, "spec.serving.template.engine is required; add it"),
    ({"engine": {"type": "TGI"}}, "spec.serving.template.engine.type is TGI; it takes 'VLLM'"),
    ({"engine": {"type": "VLLM"}, "replica": 2}, "spec.serving.template.replica is not a field; write "),
]


@pytest.mark.parametrize(("template", "sentence"), SERVING_ROWS)
def test_a_template_that_can_not_be_served_is_refused_early(template: dict[str, Any], sentence: str) -> None:
    job = FineTuneJob.model_validate(make_job(serving={"template": template}))
    assert admission.problems(job.spec)[0].startswith(sentence)


def test_an_engine_gets_only_what_it_can_load() -> None:
    vllm = {"template": {"engine": {"type": "VLLM"}}, "artifact": "q4"}
    job = FineTuneJob.model_validate(make_job(serving=vllm))
    (problem,) = admission.problems(job.spec)
    assert problem.startswith("spec.serving.artifact q4 does not suit VLLM, which serves merged, CompressedTensors")
