"""What is refused of a hand-over before a GPU is taken is what the API server would refuse after it."""

from __future__ import annotations

from itertools import product
from typing import Any

import celpy
import pytest
from celpy.adapter import json_to_cel
from tests.builders import SERVING, UID, make_job
from tests.story import Story

from finetune_operator.api.access import Load
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import ArtifactStatus, FineTuneJobStatus
from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.api.rollout import PromotionPolicy, Strategy
from finetune_operator.api.rules.modelserve import RULES
from finetune_operator.decision import Apply, Ref
from finetune_operator.finetunejob import handed, handover
from finetune_operator.modelserve.engines import ENGINES

ARTIFACTS = [
    {"name": "q4", "format": "GGUF", "quantization": "Q4_K_M"},
    {"name": "fp8", "format": "CompressedTensors", "quantization": "FP8"},
]


def problems(template: dict[str, Any]) -> list[str]:
    job = FineTuneJob.model_validate(make_job(artifacts=ARTIFACTS, serving={"template": template}))
    return handover.problems(job.spec)


def refused_by_the_api_server(template: dict[str, Any]) -> bool:
    """Whether a CEL rule of the CRD refuses the ModelServe that is handed over."""
    spec = ModelServeSpec.model_validate({"model": {"uri": "pvc://the/artifact"}, **template})
    body = json_to_cel(spec.model_dump(mode="json", by_alias=True, exclude_none=True))
    environment = celpy.Environment()
    rules = [rule for rule in RULES if rule.at == "spec"]
    assert rules
    return not all(environment.program(environment.compile(rule.must)).evaluate({"self": body}) for rule in rules)


@pytest.mark.parametrize(("engine", "tensor", "gpus"), list(product(ENGINES, (1, 2), (False, True))))
def test_admission_and_the_api_server_agree_on_how_a_model_is_split(engine: str, tensor: int, gpus: bool) -> None:
    template = {"engine": {"type": str(engine)}, "parallelism": {"tensor": tensor, "gpus": gpus}}
    assert bool(problems(template)) == refused_by_the_api_server(template)


@pytest.mark.parametrize(("engine", "metric", "asked"), list(product(ENGINES, Load, ({}, {"cpu": "1"}))))
def test_admission_and_the_api_server_agree_on_what_is_scaled_by(engine: str, metric: Load, asked: dict[str, str]) -> None:
    scaling = {"maxReplicas": 2, "metric": str(metric)}
    template = {"engine": {"type": str(engine)}, "autoscaling": scaling, "resources": {"requests": asked}}
    assert bool(problems(template)) == refused_by_the_api_server(template)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["facts", "a/b", "a.b/c", "a.b/c/d.e", "a/b.c/d", "a/b/c/d", f"{'x' * 81}"])
@pytest.mark.parametrize("gate", [{}, {"heldOut": {}}])
def test_admission_and_the_api_server_agree_on_what_an_engine_can(engine: str, name: str, gate: dict[str, Any]) -> None:
    asked = {"type": str(engine), "maxModelLength": 512}
    template = {"engine": asked, "servedName": name, "rollout": {"gate": gate}}
    given = {"model": {"uri": "pvc://the/artifact", "evaluation": f"pvc://the/evaluate/{'e' * 20}"}}
    assert bool(problems(template)) == refused_by_the_api_server(template | given)


@pytest.mark.parametrize(("strategy", "promotion"), list(product(Strategy, PromotionPolicy)))
def test_admission_and_the_api_server_agree_on_who_promotes(strategy: Strategy, promotion: PromotionPolicy) -> None:
    template = {"engine": {"type": "VLLM"}, "rollout": {"strategy": str(strategy), "promotion": str(promotion)}}
    assert bool(problems(template)) == refused_by_the_api_server(template)


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ({"engine": {"type": "LlamaCpp", "image": None}}, "spec.serving.template.engine.image"),
        ({"engine": {"env": [{"name": "A", "value": None}]}}, "spec.serving.template.engine.env[0].value"),
        ({"rollout": None}, "spec.serving.template.rollout"),
    ],
)
def test_a_null_is_refused_with_its_place(template: dict[str, Any], path: str) -> None:
    assert problems(template) == [f"{path} is null; remove it, or give it a value"]


def test_weights_that_an_engine_takes_on_gpus_only_are_not_handed_to_its_cpus() -> None:
    artifacts = [{"name": "nf4", "format": "BitsAndBytes", "quantization": "NF4"}]

    def said(gpus: bool) -> list[str]:
        template = {"engine": {"type": "VLLM"}, "parallelism": {"gpus": gpus}}
        job = make_job(artifacts=artifacts, serving={"template": template, "artifact": "nf4"})
        return handover.problems(FineTuneJob.model_validate(job).spec)

    assert said(True) == []
    assert said(False) == ["spec.serving.artifact nf4 is BitsAndBytes, which VLLM serves on GPUs only; take merged, or GPUs"]


def handed_over(**serving: Any) -> Story:
    """A job that has given its artifact to a ModelServe, which is Ready with it."""
    story = Story(make_job(serving=SERVING | serving))
    story.to_the_end()
    (action,) = story.decide().actions
    assert isinstance(action, Apply)
    wanted = action.body
    ready = {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True", "reason": "Serving"}]}
    meta = {**wanted["metadata"], "generation": 1}
    story.space.named[Ref("ModelServe", "facts")] = {**wanted, "metadata": meta, "status": ready}
    story.passes()
    return story


def test_a_model_serve_that_is_to_go_with_its_job_is_owned_by_it() -> None:
    served = handed_over(deletionPolicy="Delete").space.named[Ref("ModelServe", "facts")]
    assert served is not None
    (owner,) = served["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "name": "facts", "uid": UID}


def test_a_model_serve_of_weights_in_a_bucket_gets_what_reads_them() -> None:
    store = {"uri": "s3://a/b", "secretRef": {"name": "keys"}, "endpoint": "https://s3", "region": "eu-1"}
    store |= {"caSecretRef": {"name": "ca", "key": "bundle"}}
    job = make_job(serving=SERVING, storage={"artifacts": store})
    found = ArtifactStatus(name="q4", format="GGUF", uri="s3://a/b/q4", digest="sha256:" + "a" * 64, bytes=1)
    wanted = handover.wanted_serve(FineTuneJob.model_validate(job), FineTuneJobStatus(artifacts=[found]))
    assert wanted is not None
    assert wanted["spec"]["model"] == store | {"uri": found.uri, "digest": found.digest}


def test_a_hand_over_is_the_same_in_whatever_order_its_fields_are() -> None:
    one, other = {"spec": {"replicas": 1, "servedName": "a"}}, {"spec": {"servedName": "a", "replicas": 1}}
    assert handed.fingerprint(one) == handed.fingerprint(other)


def test_a_model_serve_that_got_another_model_before_it_was_ready_is_not_fought_for() -> None:
    story = Story(make_job(serving=SERVING))
    story.to_the_end()
    (action,) = story.decide().actions
    assert isinstance(action, Apply)
    served = {**action.body, "metadata": {**action.body["metadata"], "generation": 1}}
    story.space.named[Ref("ModelServe", "facts")] = served
    story.passes()
    assert "Succeeded" not in story.conditions()
    other = {**served["spec"], "model": {"uri": "pvc://other/model", "digest": "sha256:" + "f" * 64}}
    story.space.named[Ref("ModelServe", "facts")] = {**served, "spec": other}
    assert story.passes() == []
    assert story.conditions()["Succeeded"] == ("True", "Succeeded")


@pytest.mark.parametrize(
    ("generation", "conditions"),
    [(1, {"Ready": "False", "Available": "True"}), (0, {"Ready": "True"}), (1, {"Available": "True"}), (1, {})],
)
def test_what_was_handed_over_is_not_ready_before_its_model_serve_says_so(generation: int, conditions: dict[str, str]) -> None:
    story = handed_over()
    served = story.space.named[Ref("ModelServe", "facts")]
    assert served is not None
    assert story.job["status"]["serving"]["ready"] is True
    told = [{"type": name, "status": status} for name, status in conditions.items()]
    served["status"] = {"observedGeneration": generation, "conditions": told}
    story.passes()
    assert story.job["status"]["serving"]["ready"] is False


def test_a_model_serve_that_another_job_took_over_is_not_fought_for() -> None:
    story = handed_over()
    served = story.space.named[Ref("ModelServe", "facts")]
    assert served is not None
    served["metadata"]["labels"]["finetune.dev/job"] = "other"
    served["spec"]["replicas"] = 5
    story.edit(serving=SERVING | {"template": SERVING["template"] | {"replicas": 2}})
    assert story.passes() == []


def test_a_model_serve_that_got_another_model_since_is_left_to_whoever_gave_it() -> None:
    story = handed_over()
    served = story.space.named[Ref("ModelServe", "facts")]
    assert served is not None
    assert story.conditions()["Succeeded"] == ("True", "Succeeded")
    given = story.job["status"]["serving"]
    served["spec"]["model"] = {"uri": "pvc://other/model", "digest": "sha256:" + "f" * 64}
    assert story.passes() == []
    assert story.conditions()["Succeeded"] == ("True", "Succeeded")
    assert story.job["status"]["serving"] == given | {"ready": False}
    assert story.job["status"]["serving"]["ready"] is False


@pytest.mark.parametrize(("engine", "served"), [("VLLM", "merged"), ("LlamaCpp", None)])
def test_without_artifacts_the_merged_model_is_served_where_the_engine_reads_it(engine: str, served: str | None) -> None:
    job = FineTuneJob.model_validate(make_job(serving={"template": {"engine": {"type": engine}}}, artifacts=[]))
    assert handover.serving_artifact(job.spec) == served
