"""The mutation run itself: which changes it makes, and where it says that they run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.mutants import __main__ as run
from tests.mutants.__main__ import Results, note, reads_as
from tests.mutants.operators import mutants
from tests.mutants.suite import KILLED, SURVIVED

SOURCE = '''"""No mutant in here."""
LIMIT: int = 3
EVEN = lambda number: number == 2
NAMES = {"a": True} | {"b": 1.5}

class Kind(Enum):
    A = "a"

class Box:
    size: str = "small"

    @property
    def full(self) -> bool:
        """Nor in here."""
        if self.size and not LIMIT <= 2:
            raise ValueError("a text with spaces")
        return f"{self.size}-1"

def add(a: int, b: int = 1) -> int:
    return a + b
'''


def test_each_change_is_named_with_the_function_that_it_runs_in(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(SOURCE)
    found = [(m.line, m.function and m.function[0], m.change) for m in mutants(module)]
    assert found == [
        (2, None, "3 → 4"),
        (3, "<lambda>", "Eq → NotEq"),
        (3, "<lambda>", "2 → 3"),
        (4, None, "{'a': True} | {'b': 1.5} → {'a': True}"),
        (4, None, "'a' → 'axx'"),
        (4, None, "True → False"),
        (4, None, "'b' → 'bxx'"),
        (4, None, "1.5 → 2.5"),
        (10, None, "'small' → 'smallxx'"),
        (15, "Box.full", "And → Or"),
        (15, "Box.full", "not LIMIT <= 2 → LIMIT <= 2"),
        (15, "Box.full", "LtE → Lt"),
        (15, "Box.full", "2 → 3"),
        (17, "Box.full", "return f'{self.size}-1' → return None"),
        (17, "Box.full", "f'{self.size}-1' → f'{self.size}-1xx'"),
        (19, None, "1 → 2"),
        (20, "add", "return a + b → return None"),
        (20, "add", "Add → Sub"),
    ]


def test_a_mutant_differs_from_its_module_in_one_place(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(SOURCE)
    before = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in mutants(module):
        after = ast.unparse(mutant.tree()).splitlines()
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1, mutant.change


def test_a_row_stands_for_what_reads_alike() -> None:
    assert reads_as("`estimate.py`", "`estimate.py`")
    assert reads_as("`Code = Literal[…]`", '`Code = Literal["PyTorch", "Liger"]`')
    assert not reads_as("`Code = Literal[…]`", "`Codes = Literal[1]`")
    assert not reads_as("`a.c`", "`abc`"), "it is text, but for the dots that leave some out"


def test_what_was_killed_is_known_elsewhere_until_its_function_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ROOT": tmp_path,
        "PACKAGES": ["."],
        "KEPT": tmp_path / "kept",
        "NOTED": tmp_path / "killed.txt",
    }.items():
        monkeypatch.setattr(run, name, value)
    module = tmp_path / "module.py"
    module.write_text(SOURCE)
    killed = {(2, "3 → 4"), (10, "'small' → 'smallxx'"), (15, "And → Or"), (20, "Add → Sub")}
    results = Results()
    for mutant in mutants(module):
        results.add(mutant, KILLED if (mutant.line, mutant.change) in killed else SURVIVED)
    note(results)
    monkeypatch.setattr(run, "KEPT", tmp_path / "elsewhere")
    assert {(m.line, m.change) for m in mutants(module) if Results().of(m)} == killed
    module.write_text("# One line more.\n" + SOURCE.replace("LIMIT <= 2", "LIMIT <= 1"))
    assert {(m.line - 1, m.change) for m in mutants(module) if Results().of(m)} == killed - {(15, "And → Or")}


def test_two_fields_that_read_alike_are_two_mutants(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("class A:\n    said: str = ''\n\nclass B:\n    said: str = ''\n\nPAIR = 1 + 1 + 1\n")
    keys = [mutant.key for mutant in mutants(module)]
    assert len(set(keys)) == len(keys) == 7
