"""Servers for tests that are npm packages, installed into the cache under a name that has their version."""

import shutil
import subprocess
from pathlib import Path

from localcluster import ownership
from localcluster.errors import BuildFailed

AZURITE = "azurite@3.37.0"  # Azure Blob, as its maker emulates it


def azurite(cache: Path) -> list[str]:
    """The command of Azure's blob server, installed first if the cache lacks it. Raises BuildFailed, without Node.js too."""
    node = shutil.which("node")
    if node is None:
        raise BuildFailed("there is no node: install nodejs and npm")
    return [node, str(_installed(cache, AZURITE) / "node_modules/azurite/dist/src/blob/main.js")]


def _installed(cache: Path, package: str) -> Path:
    folder = cache / "tools" / package.replace("@", "-")
    if not folder.exists():
        with ownership.exclusively(folder.with_name(f".{folder.name}")):
            if not folder.exists():
                _install(package, folder)
    return folder


def _install(package: str, folder: Path) -> None:
    """Install it with its dependencies, of which none runs a script of its own; it has its name only when it is whole."""
    npm = shutil.which("npm")
    if npm is None:
        raise BuildFailed("there is no npm: install nodejs and npm")
    staging = folder.with_name(f".{folder.name}") / "whole"
    shutil.rmtree(staging, ignore_errors=True)  # of an installation that was cut off
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=dev", "--prefix", str(staging), package]
    print(f"installing {package} (kept in {folder})", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildFailed(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    staging.rename(folder)
