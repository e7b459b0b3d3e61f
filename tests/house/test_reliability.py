"""docs/reliability.md names tests: they must be there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[a-z_/]+\.py)(?:::(test_[a-z0-9_]+))?`")


def test_each_fault_of_the_first_review_has_a_test() -> None:
    _, _, rest = (ROOT / "docs/reliability.md").read_text().partition("## The faults of the first review")
    rows = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 17, "seventeen were found"
    assert [row for row in rows if not any(name for _, name in NAMED.findall(row))] == []


def test_every_test_that_the_page_names_is_there() -> None:
    named = NAMED.findall((ROOT / "docs/reliability.md").read_text())
    assert len(named) > 30, "hardly any test was found: this test has lost its point"
    lost = [f"{file}::{name}" for file, name in named if name and f"def {name}(" not in (ROOT / file).read_text()]
    lost += [file for file, _ in named if not (ROOT / file).exists()]
    assert lost == []
