"""What stands around the pods: as the spec asks now, and gone when it asks no more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.serving import SETTINGS, Stage, make_serve

from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.api.rules.modelserve import broken_by
from finetune_operator.meta import Object

TENANT = {"namespaceSelector": {"matchLabels": {"team": "chat"}}}


def around(stage: Stage) -> dict[str, Object]:
    """spec of each, by kind."""
    kinds = ("NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget")
    return {kind: body["spec"] for kind in kinds for body in stage.of(kind)}


def test_the_namespace_may_ask_and_whom_spec_and_chart_name() -> None:
    stage = Stage(make_serve(network={"allowFrom": [TENANT]}))
    stage.settings = replace(SETTINGS, monitoring_namespace="monitoring")
    stage.step()
    policy = around(stage)["NetworkPolicy"]
    metrics = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert policy["ingress"] == [
        {"from": [{"podSelector": {}}, TENANT, metrics], "ports": [{"port": "http", "protocol": "TCP"}]}
    ]
    selector = policy["podSelector"]
    (engine,) = [d["spec"]["template"]["metadata"]["labels"] for d in stage.of("Deployment")]
    assert selector["matchLabels"].items() <= engine.items()
    assert selector["matchExpressions"] == [{"key": "finetune.dev/revision", "operator": "Exists"}]
    assert "finetune.dev/revision" in engine


@pytest.mark.parametrize(("uri", "types"), [("pvc://models/q4", ["Ingress", "Egress"]), ("s3://b/q4", ["Ingress"])])
def test_pods_that_load_from_afar_may_ask_others(uri: str, types: list[str]) -> None:
    stage = Stage(make_serve(model={"uri": uri}))
    stage.step()
    policy = around(stage)["NetworkPolicy"]
    assert policy["policyTypes"] == types
    assert "egress" not in policy, "nobody, or whomever they like"


@pytest.mark.parametrize("said", ["by the spec", "by the chart"])
def test_no_policy_where_somebody_says_no(said: str) -> None:
    stage = Stage(make_serve())
    stage.step()
    assert around(stage).keys() == {"NetworkPolicy"}
    if said == "by the spec":
        stage.edit(network={"policy": False})
    else:
        stage.settings = replace(SETTINGS, network_policies=False)
    stage.step()
    assert around(stage) == {}


def test_an_autoscaler_scales_the_model_serve() -> None:
    stage = Stage(make_serve(autoscaling={"minReplicas": 2, "maxReplicas": 5}))
    stage.step()
    scaler = around(stage)["HorizontalPodAutoscaler"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "finetune.dev/v1alpha1", "kind": "ModelServe", "name": "facts"}
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 5)
    metric = {"metric": {"name": "llamacpp_requests_deferred"}, "target": {"type": "AverageValue", "averageValue": "5"}}
    assert scaler["metrics"] == [{"type": "Pods", "pods": metric}]
    stage.edit(autoscaling=None)
    stage.step()
    assert "HorizontalPodAutoscaler" not in around(stage)


def test_cpus_are_scaled_by_their_use() -> None:
    stage = Stage(make_serve(autoscaling={"maxReplicas": 3, "metric": "CPU"}, resources={"requests": {"cpu": "2"}}))
    stage.step()
    (metric,) = around(stage)["HorizontalPodAutoscaler"]["metrics"]
    target = {"type": "Utilization", "averageUtilization": 80}
    assert metric == {"type": "Resource", "resource": {"name": "cpu", "target": target}}


def test_of_two_pods_one_may_be_taken_at_a_time() -> None:
    stage = Stage(make_serve(replicas=2))
    stage.step()
    assert "PodDisruptionBudget" not in around(stage), "nothing takes traffic yet"
    stage.roll_out()
    stage.settle()
    budget = around(stage)["PodDisruptionBudget"]
    assert budget["maxUnavailable"] == 1
    (service,) = [s for s in stage.of("Service") if s["metadata"]["name"] == "facts"]
    assert budget["selector"]["matchLabels"] == service["spec"]["selector"]
    stage.edit(replicas=1)
    stage.step()
    assert "PodDisruptionBudget" not in around(stage)


def test_an_autoscaler_may_be_held_to_one_number() -> None:
    spec = make_serve(autoscaling={"minReplicas": 2, "maxReplicas": 2})["spec"]
    assert broken_by(ModelServeSpec.model_validate(spec)) == []


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "minReplicas must be at most": ({"minReplicas": 3, "maxReplicas": 2}, "VLLM"),
    "CacheUsage is measured by VLLM": ({"maxReplicas": 2, "metric": "CacheUsage"}, "LlamaCpp"),
    "set spec.resources.requests.cpu": ({"maxReplicas": 2, "metric": "CPU"}, "VLLM"),
    "a whole number of percent": ({"maxReplicas": 2, "metric": "CPU", "target": "0.8"}, "VLLM"),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_no_autoscaler_can_do_is_refused(said: str) -> None:
    scaling, engine = WRONG[said]
    resources = {"requests": {"cpu": "1"}} if "percent" in said else {}
    spec = {**make_serve()["spec"], "engine": {"type": engine}, "autoscaling": scaling, "resources": resources}
    (sentence,) = broken_by(ModelServeSpec.model_validate(spec))
    assert said in sentence
