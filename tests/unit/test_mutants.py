"""The mutation run itself: which changes it makes, and where it says that they run."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.mutants.operators import mutants

SOURCE = '''"""No mutant in here."""
LIMIT: int = 3
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
        (3, None, "{'a': True} | {'b': 1.5} → {'a': True}"),
        (3, None, "'a' → 'axx'"),
        (3, None, "True → False"),
        (3, None, "'b' → 'bxx'"),
        (3, None, "1.5 → 2.5"),
        (9, None, "'small' → 'smallxx'"),
        (14, "Box.full", "And → Or"),
        (14, "Box.full", "not LIMIT <= 2 → LIMIT <= 2"),
        (14, "Box.full", "LtE → Lt"),
        (14, "Box.full", "2 → 3"),
        (16, "Box.full", "return f'{self.size}-1' → return None"),
        (16, "Box.full", "f'{self.size}-1' → f'{self.size}-1xx'"),
        (18, None, "1 → 2"),
        (19, "add", "return a + b → return None"),
        (19, "add", "Add → Sub"),
    ]


def test_a_mutant_differs_from_its_module_in_one_place(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(SOURCE)
    before = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in mutants(module):
        after = ast.unparse(mutant.tree()).splitlines()
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1, mutant.change
