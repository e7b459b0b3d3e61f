"""What is generated is fresh, and what the CRDs say can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api import docgen, valuesgen
from finetune_operator.api.crdgen import render

ROOT = Path(__file__).parents[2]
LONGEST_CRD = 100_000  # bytes of what the API server keeps and kubectl compares: JSON, without YAML's indentation
CRDS, PAGES = render(), docgen.render()


@pytest.mark.parametrize("folder", ["crds", "charts/finetune-operator-crds/files"])
def test_crds_are_fresh(folder: str) -> None:
    assert {p.name for p in (ROOT / folder).glob("*.yaml")} == set(CRDS)
    for name, text in CRDS.items():
        assert (ROOT / folder / name).read_text() == text, f"{folder}/{name} is stale: run `make crds`"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_pages_are_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == PAGES[name], f"docs/{name} is stale: run `make docs`"


@pytest.mark.parametrize("name", sorted(CRDS))
def test_crds_are_short_enough_to_be_kept(name: str) -> None:
    assert len(json.dumps(_definition(name), separators=(",", ":"))) <= LONGEST_CRD


@cache
def _definition(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(CRDS[name], Loader=yaml.CSafeLoader)
    return loaded


def _schema(name: str, part: str) -> dict[str, Any]:
    schema: dict[str, Any] = _definition(name)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part]
    return schema


def test_the_charts_schema_takes_the_images_of_its_values() -> None:
    values, schema = (ROOT / "charts/finetune-operator" / name for name in ("values.yaml", "values.schema.json"))
    assert valuesgen.render(values.read_text(), schema.read_text()) == schema.read_text(), "it is stale: run `make crds`"
    with_one_more = "images: {operator: a, trainer: a, evaluator: '', sglang: b}"
    images = json.loads(valuesgen.render(with_one_more, schema.read_text()))["properties"]["images"]
    assert images["properties"].keys() == {"operator", "trainer", "evaluator", "sglang"}
    assert images["properties"]["sglang"] == {"$ref": "#/definitions/image"}
    assert images["properties"]["evaluator"] == {"type": "string"}, "none may be named"
    assert images["additionalProperties"] is False, "a slip of the pen is refused by Helm"


@pytest.mark.parametrize("name", sorted(CRDS))
def test_every_field_of_a_spec_is_described(name: str) -> None:
    fields = dict(_fields(_schema(name, "spec"), "spec"))
    assert len(fields) > 20
    # metadata of a well-known shape needs no words: a Secret's name is described once, in its own type
    assert [path for path, field in fields.items() if not field.get("description", "").strip()] == []


def test_the_page_of_fields_has_every_field_of_both_kinds() -> None:
    page = (ROOT / "docs/fields.md").read_text()
    fields = [path for name in CRDS for part in ("spec", "status") for path, _ in _fields(_schema(name, part), part)]
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
