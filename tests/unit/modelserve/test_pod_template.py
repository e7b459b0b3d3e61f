"""What podTemplate says is in the pods that serve and, but for wishes about neighbours, in a gate's; each asks for room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.serving import SPEC, Stage, make_serve

from finetune_operator.api.pod_template import PodTemplate
from finetune_operator.api.rules.pods import broken_by

TEMPLATE = {
    "labels": {"team": "nlp"},
    "annotations": {"a": "b"},
    "nodeSelector": {"pool": "gpus"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "topologySpreadConstraints": [{"topologyKey": "topology.kubernetes.io/zone"}],
    "serviceAccountName": "reader",
    "imagePullSecrets": [{"name": "registry"}],
}


def stage_with(**spec: Any) -> Stage:
    """A ModelServe whose candidate is asked its prompts."""
    serve = make_serve()
    serve["spec"] |= spec
    stage = Stage(serve)
    stage.roll_out()
    return stage


def templates(stage: Stage) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pod templates of what serves, and of the gate."""
    (serving,), (gate,) = stage.of("Deployment"), stage.of("Job")
    return serving["spec"]["template"], gate["spec"]["template"]


@pytest.mark.parametrize("model", [SPEC["model"], SPEC["model"] | {"evaluation": "pvc://models/evaluate/49fadf0f95cd7ac4f806"}])
def test_the_pods_that_serve_and_the_gates_take_it(model: dict[str, Any]) -> None:
    serving, gate = templates(stage_with(podTemplate=TEMPLATE, model=model))
    for template in (serving, gate):
        assert template["metadata"]["labels"]["team"] == "nlp"
        assert template["metadata"]["annotations"] == {"a": "b"}
        for field in ("nodeSelector", "serviceAccountName", "imagePullSecrets"):
            assert template["spec"][field] == TEMPLATE[field]
        assert template["spec"]["tolerations"][0] == {"key": "nvidia.com/gpu", "operator": "Exists"}
    (spread,) = serving["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= serving["metadata"]["labels"].items()
    assert "topologySpreadConstraints" not in gate["spec"]


def test_a_template_that_keeps_the_rules_is_taken() -> None:
    spread = {"maxSkew": 1, "topologyKey": "zone", "labelSelector": {}}
    tolerations = [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Equal", "value": "c"}]
    constraints = [
        spread | {"whenUnsatisfiable": "ScheduleAnyway"},
        spread | {"whenUnsatisfiable": "DoNotSchedule"},
        spread | {"whenUnsatisfiable": "DoNotSchedule", "minDomains": 2},
    ]
    template = {"labels": {"team": "nlp"}, "tolerations": tolerations, "topologySpreadConstraints": constraints}
    assert broken_by(PodTemplate.model_validate(template)) == []
    wrong = {
        "tolerations": [tolerations[0] | {"value": "c"}],
        "topologySpreadConstraints": [constraints[0] | {"minDomains": 2}],
    }
    assert len(broken_by(PodTemplate.model_validate(wrong | {"labels": {"finetune.dev/serve": "x"}}))) == 3


def test_another_template_is_another_revision_and_none_is_the_one_of_before() -> None:
    (plain,), (empty,), (other,) = (
        stage.of("Deployment") for stage in (stage_with(), stage_with(podTemplate={}), stage_with(podTemplate=TEMPLATE))
    )
    assert plain["metadata"]["name"] == empty["metadata"]["name"] != other["metadata"]["name"]


def test_the_charts_pull_secrets_are_in_every_pod_behind_its_own_and_are_no_other_revision() -> None:
    plain, pulled = (Stage({**make_serve(), "spec": {**make_serve()["spec"], "podTemplate": TEMPLATE}}) for _ in range(2))
    pulled.settings = replace(pulled.settings, image_pull_secrets="platform,registry")
    for stage in (plain, pulled):
        stage.roll_out()
    for template in templates(pulled):
        assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}, {"name": "platform"}]
    names = [stage.of("Deployment")[0]["metadata"]["name"] for stage in (plain, pulled)]
    assert names[0] == names[1], "to set them restarts nothing that serves"


def test_a_quota_finds_requests_and_limits_of_memory_at_each_container_of_ours() -> None:
    serving, gate = templates(stage_with(resources={"requests": {"memory": "4Gi"}, "limits": {"memory": "6Gi", "cpu": "4"}}))
    (loader,), (engine, front) = serving["spec"]["initContainers"], serving["spec"]["containers"]
    assert loader["resources"] == {"requests": {"cpu": "4", "memory": "4Gi"}, "limits": {"memory": "6Gi", "cpu": "4"}}
    assert engine["resources"]["limits"].items() >= loader["resources"]["limits"].items(), "it costs no more than the engine"
    assert "memory" in front["resources"]["limits"]
    assert "memory" in front["resources"]["requests"]
    (ask,) = gate["spec"]["containers"]
    assert set(ask["resources"]["limits"]) == set(ask["resources"]["requests"]) == {"cpu", "memory"}
    loader = templates(stage_with())[0]["spec"]["initContainers"][0]
    assert "memory" in loader["resources"]["limits"]
