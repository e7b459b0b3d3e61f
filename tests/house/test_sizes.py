"""Sizes and names: files that fit into a head, functions that fit on a screen, words of the field."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ("operator/finetune_operator", "trainer_image/finetune_trainer", "localcluster", "demo")
LONGEST_FILE = 300
LONGEST_FUNCTION = 60
NINETEEN_OF_TWENTY = 25  # lines that 95 % of the functions keep to
VAGUE = {"utils", "util", "helpers", "helper", "manager", "base", "common", "misc", "core"}


def files() -> list[Path]:
    found = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(found) > 80, "the code was not found"
    return found


def test_no_package_shadows_the_standard_library() -> None:
    assert not (ROOT / "operator/__init__.py").exists(), "operator/__init__.py would take the place of the stdlib's operator"
    assert not (ROOT / "trainer_image/__init__.py").exists()
    assert not (ROOT / "tests/operator").exists()


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files()}
    assert {p: n for p, n in lengths.items() if n > LONGEST_FILE} == {}


def test_functions_are_short() -> None:
    lengths: dict[str, int] = {}
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lengths[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = node.end_lineno - node.lineno + 1
    recipes = {name for name in lengths if "/stages/" in name and name.endswith(" run")}  # linear, read from top to bottom
    assert {n: v for n, v in lengths.items() if v > LONGEST_FUNCTION and n not in recipes} == {}
    long = sorted(n for n, v in lengths.items() if v > NINETEEN_OF_TWENTY)
    assert len(long) <= len(lengths) // 20, f"too many functions of over {NINETEEN_OF_TWENTY} lines: {long}"


def test_modules_are_named_after_what_they_are_about() -> None:
    assert [str(path.relative_to(ROOT)) for path in files() if path.stem in VAGUE or path.parent.name in VAGUE] == []


def test_each_program_has_one_module_for_its_environment() -> None:
    """What a module reads elsewhere than there is a parameter that nobody sees."""
    words = {"environ", "environb", "getenv", "putenv", "unsetenv"}

    def named(node: ast.AST) -> set[str]:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            return {node.attr}
        return {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) and node.module == "os" else set()

    trees = {str(path.relative_to(ROOT)): ast.walk(ast.parse(path.read_text())) for path in files()}
    found = {name for name, nodes in trees.items() if any(words & named(node) for node in nodes)}
    assert found == {
        "operator/finetune_operator/settings.py",
        "operator/finetune_operator/cli/environment.py",
        "trainer_image/finetune_trainer/environment.py",
        "localcluster/settings.py",
        "demo/environment.py",
    }


def test_the_operator_sees_only_the_contract_of_the_trainer() -> None:
    """The contract and the memory estimate; all else may need torch. The command line reads the artifact store besides."""
    operator = ROOT / "operator/finetune_operator"
    of_cli = set((operator / "cli").rglob("*.py"))
    assert {"contract"} <= _seen_of_trainer({*operator.rglob("*.py")} - of_cli) <= {"contract", "memory"}
    assert _seen_of_trainer(of_cli) <= {"contract", "memory", "environment", "failures", "store"}


def _seen_of_trainer(paths: set[Path]) -> set[str]:
    seen = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("finetune_trainer"):
                inner = node.module.removeprefix("finetune_trainer").strip(".")
                seen |= {inner.split(".")[0]} if inner else {alias.name for alias in node.names}
    return seen


def test_import_contracts_hold() -> None:
    """See .importlinter."""
    path = os.pathsep.join(str(ROOT / folder) for folder in ("operator", "trainer_image"))
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert ", 0 broken" in done.stdout
