"""Known holes in what we lock: pip-audit over every lock file, with what was found and may stay in audit.toml.

python -m supply audit
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supply.locks import REQUIREMENTS

ANSWERS = Path(__file__).with_name("audit.toml")


class Unreachable(Exception):
    """The service that knows of holes did not answer."""


@dataclass(frozen=True, order=True)
class Hole:
    """A hole in a package of a lock; `fixed_in` has the versions without it."""

    lock: str
    package: str
    version: str
    names: tuple[str, ...]
    fixed_in: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What is wrong and what to do."""
        remedy = f"raise it to {' or '.join(self.fixed_in)}" if self.fixed_in else "no version is without it"
        what = f"{self.lock}.txt: {self.package} {self.version} has {', '.join(self.names)}"
        return f"{what}; {remedy}, or say in {ANSWERS.name} why it may stay"


def found() -> list[Hole]:
    """The holes of all locks. Raises Unreachable."""
    return sorted(hole for lock in sorted(REQUIREMENTS.glob("*.txt")) for hole in _of_lock(lock))


def _of_lock(lock: Path) -> list[Hole]:
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--require-hashes",
        "--disable-pip",
        "--format=json",
        "--progress-spinner=off",
    ]
    done = subprocess.run([*command, f"--requirement={lock}"], check=False, capture_output=True, text=True)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        raise Unreachable(f"{lock.name}: {done.stderr.strip()[-500:]}") from None
    return read(lock.stem, told)


def read(lock: str, told: Mapping[str, list[dict[str, Any]]]) -> list[Hole]:
    """The holes that an answer of pip-audit names. Raises Unreachable where it left packages out: it calls that no hole."""
    packages, holes = told["dependencies"], []
    if skipped := [package["skip_reason"] for package in packages if "skip_reason" in package]:
        raise Unreachable(f"{len(skipped)} of the {len(packages)} packages of {lock}.txt: {skipped[0]}")
    for package in packages:
        for hole in package["vulns"]:
            names = (hole["id"], *sorted(hole["aliases"]))
            holes.append(Hole(lock, package["name"], package["version"], names, tuple(hole["fix_versions"])))
    return holes


def answered() -> dict[str, str]:
    """Name of a hole → why it may stay."""
    return {name: str(reason) for name, reason in tomllib.loads(ANSWERS.read_text())["stays"].items()}


def problems(holes: list[Hole], stays: Mapping[str, str]) -> list[str]:
    """A sentence for each hole without an answer, and for each answer to what is no hole any more."""
    known = {name for hole in holes for name in hole.names}
    open_ones = [hole.sentence for hole in holes if not stays.keys() & set(hole.names)]
    return open_ones + [f"{ANSWERS.name} answers {name}, which no lock has" for name in stays if name not in known]
