"""Examples: each one is what the CRDs take, and says what the documentation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api.crdgen import render
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.cli.document import read_document

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples").glob("*.yaml"))
SCHEMAS = {
    crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for crd in map(yaml.safe_load, render().values())
}


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [(file.name, body) for file in FILES for body in yaml.safe_load_all(file.read_text()) if body]


def test_there_are_examples_of_both_kinds() -> None:
    named = {"quickstart.yaml", "classification.yaml", "mistral-7b-qlora.yaml", "modelserve.yaml"}
    assert named <= {file.name for file in FILES}
    assert {"FineTuneJob", "ModelServe", "ConfigMap"} <= {body["kind"] for _, body in documents()}


@pytest.mark.parametrize(("file", "body"), [d for d in documents() if d[1]["kind"] in SCHEMAS])
def test_fields_are_known_to_the_crd(file: str, body: dict[str, Any]) -> None:
    schema = SCHEMAS[body["kind"]]["properties"]["spec"]
    assert unknown(body["spec"], schema, "spec") == [], file


def unknown(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    """Paths that the schema does not have; an API server would drop or refuse them."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in unknown(item, schema["items"], f"{path}[{i}]")]
    if not isinstance(value, dict) or "additionalProperties" in schema:
        return []
    found = []
    for name, inner in value.items():
        known = schema.get("properties", {}).get(name)
        found += [f"{path}.{name}"] if known is None else unknown(inner, known, f"{path}.{name}")
    return found


@pytest.mark.parametrize("file", [f for f in FILES if "kind: FineTuneJob" in f.read_text()], ids=lambda f: f.name)
def test_jobs_are_taken_by_the_types_and_every_rule(file: Path) -> None:
    read_document(file)  # raises FileError with the sentence that an API server would say


@pytest.mark.parametrize("body", [b for _, b in documents() if b["kind"] == "ModelServe"])
def test_serves_are_taken_by_the_types(body: dict[str, Any]) -> None:
    ModelServe.model_validate(body | {"metadata": {"namespace": "default", **body["metadata"]}})


def test_the_quickstart_never_tests_with_a_question_that_it_trains_on() -> None:
    data = read_document(ROOT / "examples/quickstart.yaml").config_maps["velmora"]
    rows = {key: [yaml.safe_load(line) for line in text.splitlines()] for key, text in data.items()}
    train, test = ({r["prompt"] for r in rows[key]} for key in ("train.jsonl", "test.jsonl"))
    assert len(train) == 48
    assert len(test) == 24
    assert not train & test
    answers = {key: {r["completion"] for r in found} for key, found in rows.items()}
    assert answers["test.jsonl"] == answers["train.jsonl"], "each fact is both taught and asked"


def test_the_readme_of_the_examples_names_each_of_them() -> None:
    text = (ROOT / "examples/README.md").read_text()
    assert [file.name for file in FILES if f"({file.name})" not in text] == []


def test_the_job_in_the_readme_is_taken_by_every_rule(tmp_path: Path) -> None:
    blocks = (ROOT / "README.md").read_text().split("```yaml\n")[1:]
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block.split("```")[0])
        read_document(file)
