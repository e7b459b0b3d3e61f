"""The krew plugin: its archive holds all that the command needs but libraries, and its manifest names that archive."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
URL = "https://example.com/kubectl-finetune.tar.gz"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the archive was made in, with the archive unpacked as krew does."""
    folder = tmp_path_factory.mktemp("krew")
    subprocess.run(["sh", str(ROOT / "krew/archive.sh"), str(folder), URL], check=True)
    with tarfile.open(folder / "kubectl-finetune.tar.gz") as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return folder


def run(plugin: Path, program: str, *arguments: str) -> str:
    """What a program of the plugin prints, with this Python's libraries in place of those that it would fetch."""
    path = f"{plugin / 'unpacked'}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(plugin), "KUBECTL_FINETUNE_PYTHON": sys.executable}
    return subprocess.run(
        [plugin / "unpacked" / program, *arguments], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_manifest_names_the_archive(plugin: Path) -> None:
    manifest = yaml.safe_load((plugin / "finetune.yaml").read_text())
    (platform,) = manifest["spec"]["platforms"]
    assert platform["uri"] == URL
    assert platform["sha256"] == hashlib.sha256((plugin / "kubectl-finetune.tar.gz").read_bytes()).hexdigest()
    assert (plugin / "unpacked" / platform["bin"]).is_file()
    assert manifest["spec"]["version"] == "v0.1.0"
    assert manifest["metadata"]["name"] == "finetune"
    assert "@" not in (plugin / "finetune.yaml").read_text()


def test_the_same_code_makes_the_same_archive(plugin: Path, tmp_path: Path) -> None:
    subprocess.run(["sh", str(ROOT / "krew/archive.sh"), str(tmp_path), URL], check=True)
    name = "kubectl-finetune.tar.gz"
    assert (tmp_path / name).read_bytes() == (plugin / name).read_bytes()


def test_the_command_runs_from_the_archive(plugin: Path) -> None:
    printed = run(plugin, "kubectl-finetune", "render", str(ROOT / "examples/quickstart.yaml"))
    assert "kind: Job" in printed


def test_kubectl_completes_the_commands(plugin: Path) -> None:
    assert run(plugin, "kubectl_complete-finetune", "pro").splitlines() == ["promote", ":4"]
    assert {"status", "watch", "logs", "doctor"} <= set(run(plugin, "kubectl_complete-finetune", "").splitlines())


def test_the_libraries_are_locked_by_their_hashes() -> None:
    locked = (ROOT / "requirements/cli.txt").read_text()
    names = {line.split("==")[0] for line in locked.splitlines() if "==" in line}
    assert {"typer", "rich", "kubernetes", "aiohttp", "openai", "pydantic", "pyyaml"} <= names
    assert locked.count("--hash=sha256:") > len(names)
