"""What is generated is fresh, and what the CRDs say can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api import docgen, valuesgen
from finetune_operator.api.crdgen import render

ROOT = Path(__file__).parents[2]
LONGEST_CRD = 100_000  # bytes of what the API server keeps and kubectl compares: JSON, without YAML's indentation


@pytest.mark.parametrize("folder", ["crds", "charts/finetune-operator-crds/files"])
def test_crds_are_fresh(folder: str) -> None:
    rendered = render()
    assert {p.name for p in (ROOT / folder).glob("*.yaml")} == set(rendered)
    for name, text in rendered.items():
        assert (ROOT / folder / name).read_text() == text, f"{folder}/{name} is stale: run `make crds`"
        assert len(json.dumps(yaml.safe_load(text), separators=(",", ":"))) <= LONGEST_CRD


def test_the_charts_schema_takes_the_images_of_its_values() -> None:
    values, schema = (ROOT / "charts/finetune-operator" / name for name in ("values.yaml", "values.schema.json"))
    assert valuesgen.render(values.read_text(), schema.read_text()) == schema.read_text(), "it is stale: run `make crds`"
    with_one_more = "images: {operator: a, trainer: a, evaluator: '', sglang: b}"
    images = json.loads(valuesgen.render(with_one_more, schema.read_text()))["properties"]["images"]
    assert images["properties"].keys() == {"operator", "trainer", "evaluator", "sglang"}
    assert images["properties"]["sglang"] == {"$ref": "#/definitions/image"}
    assert images["properties"]["evaluator"] == {"type": "string"}, "none may be named"
    assert images["additionalProperties"] is False, "a slip of the pen is refused by Helm"


@pytest.mark.parametrize("name", sorted(render()))
def test_every_field_of_a_spec_is_described(name: str) -> None:
    crd = yaml.safe_load(render()[name])
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    fields = dict(_fields(schema, "spec"))
    assert len(fields) > 20
    # metadata of a well-known shape needs no words: a Secret's name is described once, in its own type
    assert [path for path, field in fields.items() if not field.get("description", "").strip()] == []


@pytest.mark.parametrize("name", sorted(docgen.render()))
def test_pages_are_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == docgen.render()[name], f"docs/{name} is stale: run `make docs`"


def test_the_page_of_fields_has_every_field_of_both_kinds() -> None:
    page = (ROOT / "docs/fields.md").read_text()
    fields = [
        path
        for text in render().values()
        for part in ("spec", "status")
        for path, _ in _fields(
            yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part], part
        )
    ]
    assert len(fields) > 250
    assert [path for path in fields if f"| `{path}` |" not in page] == []


def _fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from _fields(field, f"{path}.{name}")
    if "items" in schema:
        yield from _fields(schema["items"], f"{path}[]")


def test_locks_name_no_registry_and_check_hashes() -> None:
    locks = sorted((ROOT / "requirements").glob("*.txt"))
    assert len(locks) >= 5
    for lock in locks:
        text = lock.read_text()
        assert re.search(r"https?://|--index-url|--extra-index-url|--find-links", text) is None, f"{lock.name} names a registry"
        pins = re.findall(r"^[a-zA-Z0-9][^\s=]*==[^\s;\\]+", text, re.MULTILINE)
        unhashed = [e for e in re.split(r"\n(?=[a-zA-Z0-9])", text) if "==" in e and "--hash=sha256:" not in e]
        assert pins, f"{lock.name} pins nothing"
        assert unhashed == [], f"{lock.name} has pins without hashes"
