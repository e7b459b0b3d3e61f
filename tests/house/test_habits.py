"""Habits that a reader can't count on unless they are kept everywhere: tests that never sleep, sentences with a subject."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
WRITTEN = ("operator", "trainer_image", "localcluster", "demo", "tests", "benchmarks", "serving_images")
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
            called = isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "asyncio.sleep", "sleep")
            imported = isinstance(node, ast.ImportFrom) and "sleep" in [alias.name for alias in node.names]
            if (called or imported) and file not in MAY_SLEEP:
                slept.append(f"{file}:{node.lineno}")
    assert slept == []


def test_docstrings_have_a_subject() -> None:
    """A docstring says what something is or does: "Of …" leaves the reader to find out what."""
    texts = [
        (file, node)
        for file, tree in sources(*WRITTEN)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    assert [f"{file}:{node.lineno}" for file, node in texts if node.value.value.lstrip().startswith("Of ")] == []
