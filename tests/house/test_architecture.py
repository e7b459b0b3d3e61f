"""docs/architecture.md names files and rooms that are there, on the floors that the import linter holds."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
ROOTS = ("", "operator/finetune_operator", "trainer_image/finetune_trainer")


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"`([\w/.-]+(?:\.py|\.yaml|\.json|/))`", PAGE))
    assert len(named) > 15
    assert sorted(name for name in named if not any((ROOT / root / name).exists() for root in ROOTS)) == []


def test_its_floors_are_those_of_the_import_linter() -> None:
    linter = configparser.ConfigParser()
    linter.read(ROOT / ".importlinter")
    floors = [
        {room.strip() for room in line.split("|")}
        for line in linter["importlinter:contract:floors"]["layers"].split("\n")
        if line.strip() and line.strip() != "__main__"
    ]
    drawn: dict[int, set[str]] = {}
    for floor, rooms in re.findall(r"^\| (\d+) \| ([^|]+) \|", PAGE, re.MULTILINE):
        drawn.setdefault(int(floor), set()).update(re.findall(r"`(\w+)`", rooms))
    assert [drawn[floor] for floor in sorted(drawn, reverse=True)] == floors
    assert sorted(drawn) == list(range(1, len(floors) + 1))


def test_every_table_of_the_contract_that_it_names_is_a_module() -> None:
    tables = re.search(r"of `contract/` each: (.*?); engines", PAGE, re.DOTALL)
    assert tables is not None
    contract = ROOT / "trainer_image/finetune_trainer/contract"
    names = re.findall(r"`(\w+)`", tables[1])
    assert len(names) == 6
    assert [n for n in names if not (contract / f"{n}.py").is_file() and not (contract / n).is_dir()] == []
