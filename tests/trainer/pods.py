"""Steps run as in the pods of other images than the trainer's: by a Python that holds what the image holds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from finetune_trainer import contract
from finetune_trainer.contract import ExitCode, RunConfig

SOURCE = Path(__file__).parents[2] / "trainer_image"


def python_of(image: str, *locks: str) -> Path:
    """The image's Python on this machine; skips the test where there is none, and in CI fails it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    variable = f"FINETUNE_{image.upper()}"
    folder = Path(os.environ.get(variable, cache / "finetune-operator" / image))
    if (folder / "bin/python").exists():
        return folder / "bin/python"
    make = f"sh requirements/image-venv.sh <folder> {' '.join(locks)}"
    message = f"{folder} holds no environment: make it with `{make}` and set {variable} to the folder"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def in_a_pod(
    python: Path, run: RunConfig, steps: tuple[str, ...], tmp_path: Path, *, ends: ExitCode = ExitCode.OK, seconds: float = 300
) -> str:
    """Run steps in a process of another environment; its termination message is in tmp_path/termination. Returns its log."""
    (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
    environment = os.environ | {
        contract.ENV_RUN_FILE: str(tmp_path / "run.json"),
        contract.ENV_MOUNTS: str(tmp_path / "mounts"),
        contract.ENV_SCRATCH: str(tmp_path / "scratch"),
        contract.ENV_TERMINATION_LOG: str(tmp_path / "termination"),
        "PYTHONPATH": str(SOURCE),
    }
    program = "import sys; from finetune_trainer.__main__ import main; sys.exit(max(main([s]) for s in sys.argv[1:]))"
    command = [str(python), "-c", program, *steps]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == ends, done.stderr[-3000:]
    return done.stderr
