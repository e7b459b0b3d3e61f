"""Where there is no root, and so no containers: the same file by `finetune run --local`, the same steps as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localcluster import llamacpp, settings, smollm2
from localcluster.processes import answers

from demo.console import DemoFailed, step
from demo.ways import JOB_SECONDS, in_minutes

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv/bin/python"
ADDRESS = "127.0.0.1"
FILLING_SECONDS = 120  # the environment, of which most is torch


def run(example: str) -> int:
    """The exit status of `finetune run --local`. Raises DemoFailed where what it needs can't be had."""
    chosen = settings.read()
    print(f"\nThat takes {in_minutes(_seconds(chosen))}, if this machine does nothing else.", flush=True)
    with step("Python environment (.venv)"):
        _require(["sh", str(ROOT / "requirements/venv.sh")])
    with step("llama.cpp"):
        tools = llamacpp.ensure(chosen)
    with step("model repository"):
        _require([str(PYTHON), "-m", "localcluster.smollm2", str(chosen.hub_directory / smollm2.REPOSITORY)])
    with step(f"finetune run --local {example}"), _hub(chosen) as endpoint:
        environment = _environment() | {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "LLAMA_CPP_DIR": str(tools)}
        command = [str(PYTHON), "-m", "finetune_operator.cli", "run", "--local", example]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _seconds(chosen: settings.Settings) -> float:
    """Wall time on this machine: llama.cpp is compiled and the environment filled the first time."""
    compiling = 0 if (chosen.cache / "llama.cpp").exists() else llamacpp.IMAGE.cpu_seconds / (os.cpu_count() or 1)
    filling = 0 if PYTHON.exists() else FILLING_SECONDS
    return compiling + filling + JOB_SECONDS


def _environment() -> dict[str, str]:
    folders = (ROOT / "operator", ROOT / "trainer_image", ROOT)
    return settings.of_child({"PYTHONPATH": os.pathsep.join(map(str, folders))})


def _require(command: list[str]) -> None:
    if subprocess.run(command, cwd=ROOT, env=_environment(), check=False).returncode:
        raise DemoFailed(f"{' '.join(command)} failed: see above")


@contextmanager
def _hub(chosen: settings.Settings) -> Iterator[str]:
    """The local hub on loopback while the block runs, as processes have no way to the cluster's."""
    command = [sys.executable, "-m", "localcluster.hub", str(chosen.hub_directory), ADDRESS, str(chosen.hub_port)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://{ADDRESS}:{chosen.hub_port}"
            while not answers(f"{url}/healthz"):
                if process.poll() is not None:
                    raise DemoFailed(f"port {chosen.hub_port} is taken: set LOCALCLUSTER_HUB_PORT to a free one")
            yield url
        finally:
            process.terminate()
