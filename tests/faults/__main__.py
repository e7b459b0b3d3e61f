"""The fault sweep: a fault at a write, read or pod of a whole run of each kind, on a real API server.

    python -m tests.faults [--cases NUMBER | --all] [--quick] [--seed SEED] [--only WORDS]

Prints a line for each fault class: cases, how often the fault struck, converged, differences. Ends with 1 where one
differed, or where a whole run left a right of the chart unused.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import time
from collections.abc import Iterable

from tests.faults import rights
from tests.faults.classes import BOTH, CLASSES, FaultClass
from tests.faults.sweep import Case, References, Sweep
from tests.faults.table import printed
from tests.integration.conftest import a_world


def main() -> int:
    arguments = _arguments()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    with a_world() as world:
        cases, used = asyncio.run(_run(Sweep(world), arguments, random.Random(seed)))
    print(printed(cases, used), flush=True)
    print(f"seed {seed}: the same cases again by adding --seed {seed}")
    left = [] if arguments.quick or arguments.only else rights.unused(used)  # a few cases have no occasion for each verb
    if left:
        print(f"rights of the chart that nothing used: {', '.join(left)}")
    return 1 if left or any(case.differences for case in cases) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="faults at every write, and what they come to")
    parser.add_argument("--cases", type=int, default=400, help="how many, spread over all classes by the seed")
    parser.add_argument("--all", action="store_true", help="each write of each class: more than 1,500 cases")
    parser.add_argument("--quick", action="store_true", help="all classes behind one operator, which each fault befalls")
    parser.add_argument("--seed", type=int, help="of the cases; another one in each run without it")
    parser.add_argument("--only", default="", help="classes whose name has these words")
    return parser.parse_args()


async def _run(sweep: Sweep, arguments: argparse.Namespace, dice: random.Random) -> tuple[list[Case], dict[str, set[str]]]:
    async with sweep:
        references = await sweep.references()
        chosen = [c for c in CLASSES if arguments.only in c.name]
        cases = list(_cases(chosen, references))
        if not arguments.all:
            cases = _spread(cases, arguments.cases, dice)
        begin = time.monotonic()
        for group in [cases] if arguments.quick else _groups(cases):
            await sweep.run(group)
            print(f"{time.monotonic() - begin:6.0f} s  {len(group)} cases: {group[0].fault_class.name} …", flush=True)
        return cases, sweep.used


def _cases(chosen: Iterable[FaultClass], references: References) -> Iterable[Case]:
    for fault_class in chosen:
        for kind in BOTH:
            reference = references[kind]
            for at in range(1, getattr(reference, fault_class.of) + 1):
                yield Case(fault_class, kind, at)


def _spread(cases: list[Case], number: int, dice: random.Random) -> list[Case]:
    """The same number of each class, whatever its number of writes."""
    by_class: dict[str, list[Case]] = {}
    for case in dice.sample(cases, len(cases)):
        by_class.setdefault(case.fault_class.name, []).append(case)
    rounds = itertools.zip_longest(*by_class.values())
    return [case for row in rounds for case in row if case is not None][:number]


def _groups(cases: list[Case]) -> Iterable[list[Case]]:
    """Cases that share an operator: all whose fault touches nobody else, and those of each other class."""
    together = [c for c in cases if c.fault_class.together]
    if together:
        yield together
    for fault_class in CLASSES:
        if not fault_class.together and (alone := [c for c in cases if c.fault_class == fault_class]):
            yield alone


if __name__ == "__main__":
    sys.exit(main())
