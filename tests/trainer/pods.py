"""What a pod gives its steps, on this machine: programs and Pythons of the images, and the environment of a step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from localcluster import settings

from finetune_trainer.contract import pod
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.export import llamacpp

SOURCE = Path(__file__).parents[2] / "trainer_image"


def python_of(image: str, *locks: str) -> Path:
    """The image's Python on this machine; skips the test where there is none, and in CI fails it."""
    variable = f"FINETUNE_{image.upper()}"
    folder = Path(os.environ.get(variable, settings.read().cache / image))
    if not (folder / "bin/python").exists():
        make = f"sh requirements/image-venv.sh {folder} {' '.join(locks)}"
        absent(f"{folder} holds no environment: make it with `{make}`")
    return folder / "bin/python"


def need_llama_cpp(*programs: str) -> None:
    """These files of llama.cpp are where steps look for them; skips the test where they are not."""
    cache = settings.read().cache / "llama.cpp"
    if pod.ENV_LLAMA_CPP not in os.environ and (cache / "bin").is_dir():
        os.environ[pod.ENV_LLAMA_CPP] = str(cache)
    missing = [program for program in programs if not (llamacpp.folder() / program).is_file()]
    if missing:
        absent(f"{llamacpp.folder()} lacks {' and '.join(missing)}: make it with `python -m localcluster.llamacpp`")


def absent(message: str) -> NoReturn:
    """What a test needs is not on this machine: it is skipped, but in CI, which must have everything, it fails."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def environment(run: RunConfig, tmp_path: Path, **more: str) -> dict[str, str]:
    """The environment of a pod of this run, whose file and folders lie in tmp_path; its Python finds what this one does."""
    (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
    given = {
        pod.ENV_RUN_FILE: str(tmp_path / "run.json"),
        pod.ENV_MOUNTS: str(tmp_path / "mounts"),
        pod.ENV_SCRATCH: str(tmp_path / "scratch"),
        pod.ENV_TERMINATION_LOG: str(tmp_path / "termination"),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    return os.environ | given | more


def in_a_pod(
    python: Path, run: RunConfig, steps: tuple[str, ...], tmp_path: Path, *, ends: ExitCode = ExitCode.OK, seconds: float = 300
) -> str:
    """Run steps in a process of another environment; its termination message is in tmp_path/termination. Returns its log."""
    given = environment(run, tmp_path, PYTHONPATH=str(SOURCE))
    program = "import sys; from finetune_trainer.__main__ import main; sys.exit(max(main([s]) for s in sys.argv[1:]))"
    command = [str(python), "-c", program, *steps]
    done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == ends, done.stderr[-3000:]
    return done.stderr
