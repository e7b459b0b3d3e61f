"""The CRDs: structural, and every rule where its field is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api import crdgen
from finetune_operator.meta import Rule

ROOT = Path(__file__).parents[3]
# What a structural schema of apiextensions.k8s.io/v1 may say.
ALLOWED = {
    "additionalProperties",
    "anyOf",
    "default",
    "description",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
}


def schema(definition: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, inner in node.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(node.get(word), dict):
            yield from nodes(node[word], f"{path}[]")


@pytest.mark.parametrize("definition", [crdgen.finetunejobs(), crdgen.modelserves()], ids=["job", "serve"])
def test_the_schema_is_structural_and_bounded(definition: dict[str, Any]) -> None:
    seen = 0
    for path, node in nodes(schema(definition)):
        seen += 1
        assert set(node) <= ALLOWED, path
        if not path.startswith(".spec"):
            continue
        bounds = {"array": "maxItems", "string": "maxLength"}
        if "enum" not in node and node.get("type") in bounds:
            assert bounds[node["type"]] in node, f"{path} has no bound"
        if "additionalProperties" in node:
            assert "maxProperties" in node, f"{path} has no bound"
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):
            assert node.get(bound, True) is True, f"{path}: a boolean in OpenAPI v3.0"
    assert seen > 40


def test_lists_of_named_objects_are_maps_for_server_side_apply() -> None:
    keys = {
        p: n["x-kubernetes-list-map-keys"]
        for p, n in nodes(schema(crdgen.finetunejobs()))
        if "items" in n and "x-kubernetes-list-map-keys" in n
    }
    assert keys[".status.conditions"] == ["type"]
    assert keys[".status.steps"] == keys[".spec.artifacts"] == keys[".spec.evaluation.gates"] == ["name"]


def test_status_has_no_defaults_but_the_one_that_says_not_seen_yet() -> None:
    for definition in (crdgen.finetunejobs(), crdgen.modelserves()):
        found = {p: n["default"] for p, n in nodes(schema(definition)) if p.startswith(".status") and "default" in n}
        assert found == {".status": {"observedGeneration": -1}}


def test_nested_defaults_are_left_to_the_server_but_for_those_that_differ() -> None:
    spec = schema(crdgen.finetunejobs())["properties"]["spec"]["properties"]
    assert spec["training"]["default"] == {}
    assert spec["dataset"]["properties"]["test"]["default"] == {"fraction": 0.1}
    assert "default" not in spec["training"]["properties"]["microBatchSize"]


def test_quantities_may_be_numbers() -> None:
    size = schema(crdgen.finetunejobs())["properties"]["spec"]["properties"]["storage"]["properties"]["artifacts"][
        "properties"
    ]["size"]
    assert size["x-kubernetes-int-or-string"] is True
    assert size["anyOf"] == [{"type": "integer"}, {"type": "string"}]
    assert "pattern" in size
    assert "type" not in size


def test_a_template_keeps_what_it_is_given() -> None:
    serving = schema(crdgen.finetunejobs())["properties"]["spec"]["properties"]["serving"]
    assert serving["properties"]["template"]["x-kubernetes-preserve-unknown-fields"] is True


def test_a_rule_for_a_field_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError):
        crdgen.with_rules(schema(crdgen.modelserves()), [Rule("spec.modle", "true", "")])


def test_every_rule_names_its_field_and_a_remedy() -> None:
    from finetune_operator.api.rules.finetunejob import RULES as JOB_RULES
    from finetune_operator.api.rules.modelserve import RULES as SERVE_RULES

    for rule in (*JOB_RULES, *SERVE_RULES):
        assert rule.message.startswith("spec."), rule
        assert len(rule.message) > 40, rule


def test_columns_names_and_subresources() -> None:
    job, serve = crdgen.finetunejobs()["spec"], crdgen.modelserves()["spec"]
    assert (job["names"]["shortNames"], serve["names"]["shortNames"]) == (["ftj"], ["mserve"])
    assert job["names"]["categories"] == serve["names"]["categories"] == ["finetune"]
    shown = [c["name"] for c in job["versions"][0]["additionalPrinterColumns"] if "priority" not in c]
    assert shown == ["STAGE", "PROGRESS", "LOSS", "ETA", "READY", "REASON", "AGE"]
    shown = [c["name"] for c in serve["versions"][0]["additionalPrinterColumns"] if "priority" not in c]
    assert shown == ["MODEL", "REVISION", "READY", "AVAILABLE", "URL", "AGE"]
    assert serve["versions"][0]["subresources"]["scale"]["labelSelectorPath"] == ".status.selector"


def test_the_text_is_what_the_definition_says() -> None:
    assert yaml.safe_load(crdgen.render()["modelserves.yaml"]) == crdgen.modelserves()
