"""`make coverage`: the lines and branches of each package that the tests of decisions run, as a table. No share is asked for:
what no test runs shows where to look, and `make mutants` shows what is run but not checked.

    python -m tests.coverage_table [pytest's arguments; tests/unit where there are none]
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path, PurePath

import coverage
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("operator/finetune_operator", "trainer_image/finetune_trainer")
LINES, BRANCHES = ("covered_lines", "num_statements"), ("covered_branches", "num_branches")


def main() -> int:
    """pytest's own exit status."""
    measured = coverage.Coverage(data_file=None, config_file=False, branch=True, source=[str(ROOT / s) for s in SOURCES])
    measured.start()
    status = pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", *(sys.argv[1:] or ["tests/unit"])])
    measured.stop()
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        measured.json_report(outfile=report.name)
        files = json.load(report)["files"]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for path, file in files.items():
        package = PurePath(*PurePath(path).parent.parts[1:])  # below operator/ or trainer_image/
        for name in (str(package), "all"):
            counts[name].update(file["summary"])
    print(f"\n{'package':<40}{'lines':>14}{'%':>6}{'branches':>14}{'%':>6}")
    for name in sorted(counts, key=lambda name: (name == "all", name)):
        print(f"{name:<40}{_cells(counts[name], *LINES)}{_cells(counts[name], *BRANCHES)}")
    return int(status)


def _cells(count: Counter[str], part: str, whole: str) -> str:
    share = f"{100 * count[part] / count[whole]:.0f}" if count[whole] else ""
    return f"{f'{count[part]}/{count[whole]}':>14}{share:>6}"


if __name__ == "__main__":
    sys.exit(main())
