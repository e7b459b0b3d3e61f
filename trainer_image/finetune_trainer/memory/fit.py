"""The memory estimate of one run: facts of its model and rows, and the memory there is, put into choice.py."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer import environment
from finetune_trainer.contract import combinations
from finetune_trainer.contract.devices import Devices
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import DatasetFacts, FitFacts, ModelFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Training
from finetune_trainer.failures import StepFailed, bad_config, first_line
from finetune_trainer.memory import choice, estimate
from finetune_trainer.memory.shape import Shape, shape_of

MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),  # cgroup v2: bytes or "max"
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # cgroup v1: bytes, about 2**63 for no limit
)
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Teacher:
    """A distillation's teacher: its facts, and the folder with its config.json."""

    facts: ModelFacts
    folder: Path


def fit_for(
    run: RunConfig, model: ModelFacts, dataset: DatasetFacts, model_folder: Path, teacher: Teacher | None = None
) -> FitFacts:
    """Estimate and choice for this run. `model_folder` holds the model's config.json.

    Raises StepFailed DoesNotFit, and InvalidSpec where settings don't go together or the model is of a kind not known.
    """
    check(run.training, run.devices)
    config = json.loads((model_folder / "config.json").read_bytes())
    try:
        shape = shape_of(config, model.parameters)
        taught = 0 if teacher is None else _teacher_bytes(run, teacher)
        return in_memory(run, shape, dataset.longest_row_tokens, taught)
    except KeyError as error:
        raise StepFailed(
            StepReason.ModelUnsupported,
            f"spec.model: {model.architecture} is no decoder-only transformer known here: its config.json lacks"
            f" {error.args[0]}",
        ) from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise StepFailed(
            StepReason.ModelUnsupported, f"spec.model: a size in its config.json is no number that can be: {first_line(error)}"
        ) from error
    except choice.DoesNotFit as error:
        raise StepFailed(StepReason.DoesNotFit, str(error)) from error


def check(training: Training, devices: Devices) -> None:
    """Raises StepFailed InvalidSpec with a sentence for each thing that does not go together."""
    if wrong := combinations.refusals(training, devices):
        raise bad_config("; ".join(wrong))


def _teacher_bytes(run: RunConfig, teacher: Teacher) -> int:
    """Bytes of its weights, in the format that training reads them in."""
    shape = shape_of(json.loads((teacher.folder / "config.json").read_bytes()), teacher.facts.parameters)
    return estimate.frozen_bytes(shape, run.training, on_gpu=run.devices.gpus > 0)


def in_memory(run: RunConfig, shape: Shape, row_tokens: int, taught: int) -> FitFacts:
    """The setting that fits the run of a model of this shape, by its longest row and a teacher's bytes beside it.

    Each rank takes its part of the global batch. Auto takes the first strategy that fits. Raises DoesNotFit as the last
    strategy tried says it.
    """
    devices, training = run.devices, run.training
    on_gpu, available, world = devices.gpus > 0, available_memory(run), devices.world_size
    if taught:
        return _beside_teacher(run, shape, row_tokens, taught)
    if world == 1:
        return choice.fit(shape, training, row_tokens, available, on_gpu)
    own = training.model_copy(update={"global_batch_size": training.global_batch_size // world})
    *others, last = combinations.strategies(training, devices)
    for strategy in others:
        try:
            found = choice.fit(shape, own, row_tokens, available, on_gpu, choice.Ranks(strategy, world))
        except choice.DoesNotFit:
            continue
        return found.model_copy(update={"strategy": strategy})
    found = choice.fit(shape, own, row_tokens, available, on_gpu, choice.Ranks(last, world))
    return found.model_copy(update={"strategy": last})


def _beside_teacher(run: RunConfig, shape: Shape, row_tokens: int, taught: int) -> FitFacts:
    """The fit in the memory that the teacher's weights leave."""
    available = available_memory(run)
    left = None if available is None else available - taught
    lighter = run.model_copy(update={"devices": run.devices.model_copy(update={"memory_bytes": left})})
    if left is not None and left <= 0:
        raise choice.DoesNotFit(
            f"the weights of spec.training.distillation.teacher need {taught / estimate.GIB:.1f} GiB, the device has"
            f" {(available or 0) / estimate.GIB:.1f} GiB; take a smaller teacher or a device with more memory"
        )
    try:
        found = in_memory(lighter, shape, row_tokens, 0)
    except choice.DoesNotFit as error:
        raise choice.DoesNotFit(f"{error} (the teacher's weights take {taught / estimate.GIB:.1f} GiB beside that)") from error
    terms, needed = found.terms | {"teacher": taught}, found.predicted_bytes + taught
    return found.model_copy(update={"available_bytes": available, "predicted_bytes": needed, "terms": terms})


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
    if environment.read().uid is not None:
        return total
    limits = [path.read_text().strip() for path in MEMORY_LIMITS if path.is_file()]
    return min([total, *(int(limit) for limit in limits if limit != "max")])
