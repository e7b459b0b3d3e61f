"""The site is built without a warning, and what its pages tell people to write is taken: by the types, the rules, the chart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import website.__main__ as website
import yaml
from localcluster import chart
from tests.house.test_examples import SCHEMAS, unknown

from finetune_operator.api.modelserve import ModelServe
from finetune_operator.cli import reference
from finetune_operator.cli.document import read_document

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^ *```yaml( title=\"values.yaml\")?\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
FETCHED = re.compile(r'(?:<script[^>]*src|<link[^>]*rel="(?:stylesheet|icon)"[^>]*href|<img[^>]*src)="(https?:[^"]*)')


def blocks(of_values: bool) -> list[Any]:
    """Each block of YAML of the pages, with its page and number for a name."""
    found = []
    for page in PAGES:
        for number, (title, text) in enumerate(BLOCK.findall(page.read_text())):
            if bool(title) is of_values:
                found.append(pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    website.build(tmp_path / "site")
    made = {str(page.relative_to(tmp_path / "site").parent) for page in (tmp_path / "site").rglob("index.html")}
    assert {".", "tutorial", "fields", "howto/gpu-cluster", "SECURITY", "files/examples/quickstart.yaml"} <= made
    assert '<a href="files/examples/quickstart.yaml/">' in (tmp_path / "site/index.html").read_text(), "links are set"
    for page in (tmp_path / "site").rglob("index.html"):
        assert FETCHED.findall(page.read_text()) == [], f"{page} needs another server"


@pytest.mark.parametrize("text", blocks(of_values=True))
def test_values_on_pages_are_taken_by_the_chart(text: str, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(text)
    assert chart.render([f"--values={values}"]), "Helm holds them against the schema"


@pytest.mark.parametrize("text", blocks(of_values=False))
def test_jobs_and_served_models_on_pages_are_taken(text: str, tmp_path: Path) -> None:
    for number, body in enumerate(b for b in yaml.safe_load_all(text) if isinstance(b, dict)):
        if body.get("kind") == "FineTuneJob":
            (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(body))
            read_document(tmp_path / f"{number}.yaml")
        elif body.get("kind") == "ModelServe":
            ModelServe.model_validate(body | {"metadata": {"namespace": "default", **body["metadata"]}})
        elif body.keys() == {"spec"}:
            schemas = (schema["properties"]["spec"] for schema in SCHEMAS.values())
            wrong = [unknown(body["spec"], schema, "spec") for schema in schemas]
            assert [] in wrong, min(wrong, key=len)


def test_the_page_of_commands_is_fresh() -> None:
    assert (ROOT / "docs" / reference.PAGE).read_text() == reference.page(), "it is stale: run `make docs`"


def test_what_pages_tell_to_make_can_be_made() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {name for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z][a-z0-9-]*)", page.read_text(), re.MULTILINE)}
    assert len(asked) > 5
    assert asked <= targets
