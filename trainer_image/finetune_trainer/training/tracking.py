"""Where the curves of a run go beside its own log: TensorBoard files with the adapter, MLflow, Weights & Biases.

The callbacks are transformers' own. They read where to go, and with which credentials, from the environment of this process,
which gets the keys of the Secret that spec.training.reportSecretRef names.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from finetune_trainer import environment
from finetune_trainer.contract.pod import Owner
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import TRACKERS
from finetune_trainer.failures import bad_config

FOLDER = "tensorboard"  # beside the adapter, or the weights of Full
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",), "wandb": ("wandb",)}


def arguments(run: RunConfig, output: Path) -> dict[str, Any]:
    """What transformers' TrainingArguments take for it; TensorBoard's files go below `output`.

    Raises StepFailed InvalidSpec where the image lacks a package, or the environment what a tracker must know.
    """
    wanted = run.training.report_to
    if run.training.report_secret_ref is not None:
        environment.offer(environment.secret(Owner.REPORTS))
    for name in wanted:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise bad_config(
                f"spec.training.reportTo: this image has no {PACKAGES[name][0]}; set spec.stages.train.image to one that has"
                f" (pip install {PACKAGES[name][0]}), or leave {name} out"
            )
        missing = environment.missing(TRACKERS[name])
        if missing:
            raise bad_config(
                f"spec.training.reportTo: {name} needs {' and '.join(missing)}; put it into the Secret that"
                " spec.training.reportSecretRef names"
            )
    if "tensorboard" in wanted:
        environment.put({"TENSORBOARD_LOGGING_DIR": str(output / FOLDER)})
    return {"report_to": list(wanted) or "none", "run_name": f"{run.namespace}/{run.name}"}
