"""The lock files, and what the packages in them say of themselves where they are installed."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from localcluster import settings

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements"
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", re.MULTILINE)
# Environment of its own in the cache → the locks that it holds. What the others hold is in .venv, too.
ENVIRONMENTS = {
    "quantizer": ("quantizer",),
    "evaluator": ("serve-vllm", "evaluator"),
    "site": ("site",),
    "supply": ("supply",),
    "llamacpp-build": ("llamacpp-build",),
    "uv": ("uv",),
}


@dataclass(frozen=True, order=True)
class Pin:
    """A package in a version."""

    name: str
    version: str


def pins(lock: Path) -> list[Pin]:
    """What a lock file pins; it may have a package in several versions, for several Pythons."""
    return sorted({Pin(normal(name), version) for name, version in PIN.findall(lock.read_text())})


def locked() -> dict[Pin, list[str]]:
    """Each package of all lock files, with the names of those that have it."""
    found: dict[Pin, list[str]] = {}
    for lock in sorted(REQUIREMENTS.glob("*.txt")):
        for pin in pins(lock):
            found.setdefault(pin, []).append(lock.stem)
    return found


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def make_environments() -> None:
    """Fill each environment that the cache lacks: a few gigabytes, most of which uv has from other environments."""
    for name, locks in ENVIRONMENTS.items():
        subprocess.run(["sh", str(REQUIREMENTS / "image-venv.sh"), str(settings.read().cache / name), *locks], check=True)


def folders() -> Iterator[Path]:
    """Where packages are installed on this machine: for development, and in the cache."""
    yield Path(sysconfig.get_path("purelib"))
    yield from (ROOT / ".venv").glob("lib/python3*/site-packages")
    for name in ENVIRONMENTS:
        yield from (settings.read().cache / name).glob("lib/python3*/site-packages")


def installed(places: Iterable[Path]) -> dict[Pin, Message]:
    """Each package that lies in these folders, with its metadata."""
    found: dict[Pin, Message] = {}
    for distribution in importlib.metadata.distributions(path=[str(place) for place in places]):
        metadata = distribution.metadata
        version = metadata["Version"].removeprefix("v")  # which PEP 440 lets packages write
        found.setdefault(Pin(normal(metadata["Name"]), version), metadata)  # type: ignore[arg-type]
    return found
