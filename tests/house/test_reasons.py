"""Reasons of the API: each stands once in a table, is used, and is explained on a page; no code makes up one of its own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from finetune_trainer.contract.reasons import Reason
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reasons.remarks import RemarkReason
from finetune_trainer.contract.reasons.steps import RETIRED, StepReason

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "trainer_image/finetune_trainer/contract/reasons"
REASONS: list[Reason] = [*StepReason, *OperatorReason, *RemarkReason]
# Words of the API that are no reasons where they stand: types of conditions and members of enumerations.
HOMONYMS = {"Canary", "Gating", "Held", "Loading", "Refused", "Serving", "Succeeded"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for folder in ("operator/finetune_operator", "trainer_image/finetune_trainer"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.is_relative_to(TABLES):
                yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def test_each_name_stands_once_and_is_written_as_the_api_writes_it() -> None:
    names = [reason.value for reason in REASONS]
    assert len(names) == len(set(names)) > 100
    assert [n for n in names if not re.fullmatch(r"([A-Z][a-z0-9]*)+", n)] == []
    assert not set(names) & set(RETIRED)
    assert set(RETIRED.values()) <= {reason.value for reason in StepReason}


@pytest.mark.parametrize("reason", REASONS)
def test_its_text_is_a_clause_that_a_message_can_take_up(reason: Reason) -> None:
    assert len(reason.text) > 20
    assert not reason.text[0].isupper() or reason.text.startswith(("API", "CPU", "GPU"))
    assert reason.text[-1] not in ".;,"
    assert "\n" not in reason.text


def test_every_reason_is_used() -> None:
    used = {
        f"{node.value.id}.{node.attr}"
        for _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert [f"{type(r).__name__}.{r}" for r in REASONS if f"{type(r).__name__}.{r}" not in used] == []


def test_no_code_makes_up_a_reason() -> None:
    """What is given as a `reason`, or compared with one, is never a text: those are what the tables are for."""
    found = list(modules())
    public: dict[str, set[int]] = {}
    for _, tree in found:
        for name, at in _positions(tree).items():
            public[name] = public.get(name, set()) | at if not name.startswith("_") else set()
    takers = {name for name, at in public.items() if at}
    assert {"StepFailed", "Told", "Event", "Outlook", "Rollout", "Trouble", "Obstacle", "Missing", "Failure"} <= takers
    made_up = [f"{path}:{line}" for path, tree in found for line in _made_up(tree, public | _positions(tree))]
    assert made_up == []


def test_no_text_is_spelled_like_a_reason() -> None:
    known = {reason.value for reason in REASONS} - HOMONYMS
    spelled = [
        f"{path}:{node.lineno} {node.value}"
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in known
    ]
    assert spelled == []


def test_the_page_has_every_reason() -> None:
    page = (ROOT / "docs/reasons.md").read_text()
    assert [r for r in REASONS if f"| `{r}` |" not in page] == []


def test_pages_name_no_retired_reason() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    named = [f"{page.name} {old}" for page in pages for old in RETIRED if f"`{old}`" in page.read_text()]
    assert named == []


def _positions(tree: ast.Module) -> dict[str, set[int]]:
    """Which argument of a module's functions and classes is the reason; an empty set for those that take none."""
    found: dict[str, set[int]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            names = [a.arg for a in node.args.args if a.arg != "self"]
        elif isinstance(node, ast.ClassDef):
            init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
            names = fields if init is None else [a.arg for a in init.args.args[1:]]
        else:
            continue
        found[node.name] = {names.index("reason")} if "reason" in names else set()
    return found


def _made_up(tree: ast.Module, positions: Mapping[str, set[int]]) -> Iterator[int]:
    texts = {name.id for node in tree.body if isinstance(node, ast.Assign) for name in _texts(node)}
    for node in ast.walk(tree):
        given: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = [k.value for k in node.keywords if k.arg == "reason"]
            given += [node.args[at] for at in positions.get(name, ()) if at < len(node.args)]
        elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "reason":
            given = node.comparators
        for value in given:
            ends = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            if any(isinstance(e, ast.JoinedStr) or (isinstance(e, ast.Constant) and e.value) for e in ends):
                yield value.lineno
            if any(isinstance(e, ast.Name) and e.id in texts for e in ends):
                yield value.lineno


def _texts(node: ast.Assign) -> Iterator[ast.Name]:
    """The names that a module gives to texts of its own."""
    for target in node.targets:
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value] * len(names)
        for name, value in zip(names, values, strict=False):
            if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield name
