"""Where models, rows and results lie: one table, and nothing beside it that knows a scheme."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_trainer.contract import places
from finetune_trainer.contract.places import PLACES, Reach, Use

ROOT = Path(__file__).parents[4]
CODE = sorted([*ROOT.glob("operator/**/*.py"), *ROOT.glob("trainer_image/**/*.py")])
KNOWN = ["hf", "pvc", "s3", "gs", "az", "https", "configmap"]  # of which each row below says who is taken
SCHEMES = [place.scheme for place in PLACES if place.reach is not Reach.HTTPS]  # https:// also begins a server's address


@pytest.mark.parametrize(
    ("use", "schemes"),
    [
        (Use.MODEL, "hf pvc s3 gs az"),
        (Use.ROWS, "hf pvc s3 gs az https configmap"),
        (Use.TASKS, "pvc s3 gs az configmap"),
        (Use.STORE, "pvc s3 az"),
        (Use.PUBLISH, "hf pvc s3 az"),
        (Use.SERVE, "pvc s3 az"),
    ],
)
def test_a_uri_is_taken_for_what_its_place_can_do(use: Use, schemes: str) -> None:
    taken = [place for place in PLACES if re.search(places.pattern(use), f"{place.prefix}org/name")]
    assert [place.scheme for place in taken if place.scheme in KNOWN] == schemes.split()
    assert not re.search(places.pattern(use), "ftp://host/path")
    assert all(place.prefix in places.forms(use) for place in taken)


def test_a_repository_to_publish_to_is_written_whole() -> None:
    def taken(uri: str) -> bool:
        return re.search(places.pattern(Use.PUBLISH), uri) is not None

    assert taken("hf://org/name@v1")
    assert not taken("hf://org/name/more")
    assert not taken("hf://name")


def test_an_evaluation_lies_where_models_are_served_from() -> None:
    pattern = places.pattern(Use.SERVE, ".+/evaluate/[0-9a-f]{20}")
    assert re.search(pattern, f"az://box/store/evaluate/{'a' * 20}")
    assert not re.search(pattern, f"az://box/store/evaluate/{'a' * 20}/more")
    assert not re.search(pattern, f"gs://box/store/evaluate/{'a' * 20}")


@pytest.mark.parametrize(
    ("uri", "path", "claim", "config_map"),
    [
        ("pvc://data/deep/rows.jsonl", "/mounts/claims/data/deep/rows.jsonl", "data", None),
        ("configmap://facts/train.jsonl", "/mounts/configmaps/facts/train.jsonl", None, "facts"),
        ("s3://data/rows.jsonl", None, None, None),
        ("az://data/rows.jsonl", None, None, None),
    ],
)
def test_what_is_mounted(uri: str, path: str | None, claim: str | None, config_map: str | None) -> None:
    assert places.mounted_path(uri, "/mounts") == path
    assert (places.claim_of(uri), places.config_map_of(uri)) == (claim, config_map)


def test_whatever_must_be_in_a_secret_is_told() -> None:
    told = places.credentials(PLACES)
    assert "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY for az://" in told
    assert all(set(place.required) <= set(place.keys) for place in PLACES)
    assert all(key in told for place in PLACES for key in place.keys)


@pytest.mark.parametrize("file", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_else_decides_by_a_scheme(file: Path) -> None:
    """Sentences may name schemes; a constant that is one, or that begins or compares with one, stands in the table alone."""
    if file == Path(places.__file__):
        return
    begins = re.compile(rf"^\^?\(?({'|'.join(SCHEMES)})(://|$)|startsWith\('({'|'.join(SCHEMES)})://")
    assert [text for text in _constants(file) if begins.search(text)] == []


def _constants(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
