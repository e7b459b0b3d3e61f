"""The command line's environment: no other module of it reads it, or hands it on to a step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from finetune_trainer.contract import pod


def llama_cpp(variables: Mapping[str, str] = os.environ) -> Path:
    """Where the trainer will look for llama.cpp."""
    return Path(variables.get(pod.ENV_LLAMA_CPP, pod.LLAMA_CPP))


def of_step(packages: Path, told: Mapping[str, str], variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a step's process gets: this process's environment, the folder of the trainer's package, and what a pod is told."""
    path = os.pathsep.join(filter(None, (str(packages), variables.get("PYTHONPATH"))))
    return {**variables, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **told}
