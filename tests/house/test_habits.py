"""Habits that a reader can't count on unless they are kept everywhere: tests that never sleep, sentences with a subject."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SUBJECTLESS = {"Of", "Until", "Without", "By", "Over", "Beside", "Between", "As"}  # begin no sentence of ours
WRITTEN = ("operator", "trainer_image", "localcluster", "demo", "dashboards", "supply", "tests", "benchmarks", "serving_images")
MAY_SLEEP = {"tests/waiting.py"}  # between two looks at a real process, up to a deadline


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 40, "the code was not found"
    for path in files:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def test_no_test_sleeps() -> None:
    slept = []
    for file, tree in sources("tests"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                sleeps = ast.unparse(node.func) in ("time.sleep", "asyncio.sleep", "sleep")
            else:
                sleeps = isinstance(node, ast.ImportFrom) and "sleep" in [alias.name for alias in node.names]
            if sleeps and file not in MAY_SLEEP:
                slept.append(f"{file}: {ast.unparse(node)}")
    assert slept == []


def test_docstrings_have_a_subject() -> None:
    """A docstring says what something is or does: "Of …" or "Until …" leaves the reader to find out what."""
    texts = [
        (f"{file}:{node.lineno}", node.value.value)
        for file, tree in sources(*WRITTEN)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    assert [place for place, text in texts if text.split(maxsplit=1)[0] in SUBJECTLESS] == []


def test_decisions_are_listed() -> None:
    folder = ROOT / "docs/decisions"
    listed = re.findall(r"\[(\d{4})\]\((.+?)\) \| (.+?) \|", (folder / "README.md").read_text())
    records = sorted(folder.glob("0*.md"))
    assert [f"# {number} {title}" for number, _, title in listed] == [record.read_text().splitlines()[0] for record in records]
    assert [name for _, name, _ in listed] == [record.name for record in records]


def test_forms_are_yaml() -> None:
    for form in sorted((ROOT / ".github").rglob("*.yml")):
        assert yaml.safe_load(form.read_text()), form.name
