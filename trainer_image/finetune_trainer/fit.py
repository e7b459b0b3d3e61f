"""The memory estimate of one run: facts of its model and rows put into memory.py, and the memory there is."""

from __future__ import annotations

import json
import os
from pathlib import Path

from finetune_trainer import memory
from finetune_trainer.contract import ENV_POD_UID, DatasetFacts, ExitCode, FitFacts, ModelFacts, RunConfig
from finetune_trainer.failures import StepFailed

MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),  # cgroup v2: bytes or "max"
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # cgroup v1: bytes, about 2**63 for no limit
)
MEMINFO = Path("/proc/meminfo")


def fit_for(run: RunConfig, model: ModelFacts, dataset: DatasetFacts, model_folder: Path) -> FitFacts:
    """Estimate and choice for this run. `model_folder` holds the model's config.json.

    Raises StepFailed DoesNotFit, or BadConfig where the batch sizes don't go together.
    """
    on_gpu = run.devices.gpus > 0
    config = json.loads((model_folder / "config.json").read_bytes())
    try:
        shape = memory.shape_of(config, model.parameters)
        return memory.fit(shape, run.training, dataset.longest_row_tokens, available_memory(run), on_gpu)
    except KeyError as error:
        raise StepFailed(
            ExitCode.BAD_CONFIG,
            "ModelUnsupported",
            f"spec.model: {model.architecture} is no decoder-only transformer known here: its config.json lacks"
            f" {error.args[0]}",
        ) from error
    except ValueError as error:
        raise StepFailed(ExitCode.BAD_CONFIG, "BadConfig", str(error)) from error
    except memory.DoesNotFit as error:
        raise StepFailed(ExitCode.DOES_NOT_FIT, "DoesNotFit", str(error)) from error


def available_memory(run: RunConfig) -> int | None:
    """Bytes that training may use on one device: as the run says, else, where there is no GPU, the machine's."""
    if run.devices.memory_bytes is not None:
        return run.devices.memory_bytes
    return machine_memory() if run.devices.gpus == 0 else None


def machine_memory() -> int:
    """Bytes of this machine's memory; outside of a pod no more than the limit of this process's control group.

    In a pod that limit is prepare's own, not train's, which the run would have named if it had one.
    """
    kibibytes = next(line for line in MEMINFO.read_text().splitlines() if line.startswith("MemTotal:")).split()[1]
    total = int(kibibytes) * 1024
    if ENV_POD_UID in os.environ:
        return total
    limits = [path.read_text().strip() for path in MEMORY_LIMITS if path.is_file()]
    return min([total, *(int(limit) for limit in limits if limit != "max")])
