"""`make mutants`: does a test fail where the code is wrong? Each small change of the pure modules is tried, and what no test
notices is listed in survivors.md, where each has its reason.

    python -m tests.mutants [--sample N [--seed S]] [--minutes M] [PATH…]

A tool of our own, because mutmut 3.8 changes nothing but the bodies of undecorated functions, where the contract is fields and
tables, and cosmic-ray 8.7 starts pytest anew for each of four thousand mutants.

What is found is kept in .mutants/, so that a run that was ended goes on where it was. A killed mutant stays so until its
function changes, or its statement where that runs at import, and is noted in killed.txt for other machines; a survivor stays
so until a test changes.
Fails below 80 %, or where a survivor has no reason.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.mutants.operators import Mutant, mutants
from tests.mutants.suite import ENDLESS, KILLED, NOT_RUN, OPTIONS, SUITE, SURVIVED, Suite, digest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "operator/finetune_operator/finetunejob",
    "operator/finetune_operator/modelserve",
    "operator/finetune_operator/api/rules",
    "trainer_image/finetune_trainer/contract",
    "trainer_image/finetune_trainer/memory",
)
KEPT, SURVIVORS, NOTED = ROOT / ".mutants", Path(__file__).with_name("survivors.md"), Path(__file__).with_name("killed.txt")
LEAST = 0.8
OUTCOMES = (KILLED, ENDLESS, SURVIVED, NOT_RUN)
HEAD = """# Mutants that no test kills

`make mutants` writes this table and keeps its reasons; … in a row is any text, so that one row tells of what reads alike.
What is mutated, and what is not: [operators.py](operators.py). What was killed is noted in [killed.txt](killed.txt).

The last run killed {share:.1f} % of {tried} mutants, of {all} that there are.

| in | line | change | reason |
|---|---|---|---|
"""


class Results:
    """The outcomes so far, in a file that is written at each."""

    def __init__(self) -> None:
        KEPT.mkdir(exist_ok=True)
        self.tests = digest(ROOT, "tests")
        self.file = KEPT / "outcomes.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.outcomes = {name: (outcome, tests) for name, outcome, tests in map(json.loads, lines)}
        self.noted = noted()

    def of(self, mutant: Mutant) -> str | None:
        if mutant.key in self.noted.get(_module(mutant), ()):
            return KILLED
        outcome, tests = self.outcomes.get(_name(mutant), (None, ""))
        return outcome if outcome in (KILLED, ENDLESS) or tests == self.tests else None

    def add(self, mutant: Mutant, outcome: str) -> None:
        self.outcomes[_name(mutant)] = (outcome, self.tests)
        with self.file.open("a") as file:
            print(json.dumps([_name(mutant), outcome, self.tests]), file=file)


def noted() -> dict[str, set[str]]:
    """The keys of the mutants that were killed, by module."""
    lines = NOTED.read_text().splitlines() if NOTED.exists() else []
    return {module: set(keys) for module, *keys in map(str.split, lines)}


def note(results: Results) -> None:
    """Writes down what is killed of the modules as they are."""
    found: dict[str, list[str]] = defaultdict(list)
    for mutant in _mutants(PACKAGES):
        if results.of(mutant) in (KILLED, ENDLESS):
            found[_module(mutant)].append(mutant.key)
    NOTED.write_text("".join(f"{module} {' '.join(keys)}\n" for module, keys in found.items()))


def _modules(paths: Iterable[str]) -> list[Path]:
    asked = [ROOT / path for path in paths]
    return sorted({file for path in asked for file in (path.rglob("*.py") if path.is_dir() else [path])})


def _mutants(paths: Iterable[str]) -> list[Mutant]:
    return [mutant for path in _modules(paths) for mutant in mutants(path)]


def _module(mutant: Mutant) -> str:
    return str(mutant.path.relative_to(ROOT))


def _name(mutant: Mutant) -> str:
    return f"{_module(mutant)} {mutant.key}"


def try_all(suite: Suite, todo: list[Mutant], results: Results, until: float) -> None:
    """Two processes at a time, or as many as JOBS says."""
    suite.learn(_modules(PACKAGES))
    for number, mutant in enumerate([*todo, None], 1):
        while suite.trying and (mutant is None or len(suite.trying) >= int(os.environ.get("JOBS", "2"))):
            results.add(*suite.ended())
        if mutant is None or time.monotonic() > until:
            continue
        if not suite.start(mutant):
            results.add(mutant, NOT_RUN)
        if number % 100 == 0:
            print(f"{number} of {len(todo)}", flush=True)


def report(tried: list[Mutant], results: Results) -> float:
    """Prints a line for each package; the share that was killed."""
    print(f"\n{'package':<45}{'mutants':>11}{''.join(f'{name:>11}' for name in OUTCOMES)}{'killed %':>11}")
    all_of = Counter[str]()
    for package in (*PACKAGES, "all"):
        count = Counter(str(results.of(m)) for m in tried if package in str(m.path))
        all_of += count
        count = all_of if package == "all" else count
        caught, total = count[KILLED] + count[ENDLESS], count.total()
        numbers = "".join(f"{count[name]:>11}" for name in OUTCOMES)
        print(f"{package:<45}{total:>11}{numbers}{100 * caught / max(1, total):>11.1f}")
    return (all_of[KILLED] + all_of[ENDLESS]) / max(1, all_of.total())


def survivors(results: Results) -> dict[tuple[str, ...], str]:
    """What survived, and what did so in an earlier run and was not tried again: each mutant's cells with their reason."""
    known: dict[tuple[str, ...], str] = {}
    for line in SURVIVORS.read_text().splitlines() if SURVIVORS.exists() else []:
        if line.startswith("| `"):
            *cells, reason = line.removeprefix("| ").removesuffix(" |").split(" | ")
            known[tuple(cells)] = reason.strip()
    found: dict[tuple[str, ...], str] = {}
    for mutant in _mutants(PACKAGES):
        outcome, it = results.of(mutant), _cells(mutant)
        row = next((row for row in known if all(map(reads_as, row, it))), None)
        if outcome in (SURVIVED, NOT_RUN) or (outcome is None and row):
            found[row or it] = known[row] if row else ""
    return {row: found[row] for row in (*known, *found) if row in found}


def reads_as(written: str, cell: str) -> bool:
    """A row may stand for many that read alike: … is any text."""
    return re.fullmatch(".*".join(map(re.escape, written.split("…"))), cell) is not None


def _cells(mutant: Mutant) -> tuple[str, str, str]:
    where = f"{mutant.path.parent.name}/{mutant.path.name}" + (f" {mutant.function[0]}" if mutant.function else "")
    line = mutant.path.read_text().splitlines()[mutant.line - 1].strip()
    where, line, change = (f"`{text.replace('`', '')}`".replace("|", "\\|") for text in (where, line, mutant.change))
    return where, line, change


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("paths", nargs="*", default=PACKAGES)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--minutes", type=float, default=10_000)
    asked = parser.parse_args()
    tried = _mutants(asked.paths)
    of_all = len(tried)
    random.Random(asked.seed).shuffle(tried)  # so that a run that is ended has tried a fair sample
    if asked.sample and asked.sample < of_all:
        print(f"{asked.sample} of {of_all} mutants, by seed {asked.seed}", flush=True)
        tried = tried[: asked.sample]
    results = Results()
    todo = [mutant for mutant in tried if results.of(mutant) is None]
    until = time.monotonic() + 60 * asked.minutes
    if todo:
        pytest.main([*SUITE, *OPTIONS, "-s"], plugins=[Suite(lambda suite: try_all(suite, todo, results, until), KEPT)])
    tried = [mutant for mutant in tried if results.of(mutant)]
    note(results)
    share, table = report(tried, results), survivors(results)
    table_text = "".join(f"| {' | '.join(cells)} | {reason} |\n" for cells, reason in table.items())
    SURVIVORS.write_text(HEAD.format(share=100 * share, tried=len(tried), all=of_all) + table_text)
    without = sum(not reason for reason in table.values())
    print(f"\n{len(table)} survivors, {without} of them without a reason: {SURVIVORS}. Not tried: {of_all - len(tried)}")
    return 0 if share >= LEAST and (asked.sample or not without) else 1


if __name__ == "__main__":
    sys.exit(main())
