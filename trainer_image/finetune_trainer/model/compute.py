"""Where a model runs and in which number type it multiplies, by precision and machine."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import torch

from finetune_trainer.contract.adapters import Quantization
from finetune_trainer.contract.devices import Devices, Strategy
from finetune_trainer.contract.training import Method, Precision
from finetune_trainer.failures import bad_config
from finetune_trainer.ranks.zero import STAGES

AMPERE = (8, 0)  # compute capability from which on a GPU has bf16
ADA = (8, 9)  # and FP8


@dataclass(frozen=True)
class Compute:
    """Where a model runs and in which type it multiplies."""

    device: str  # "cuda" or "cpu"
    dtype: torch.dtype


def compute_for(precision: Precision, devices: Devices) -> Compute:
    """Resolve `training.precision` on this machine.

    Raises StepFailed InvalidSpec for a type that the device can't train in, and when a promised GPU is missing.
    """
    if devices.gpus == 0:
        return Compute("cpu", torch.bfloat16 if precision is Precision.BF16 else torch.float32)
    if not torch.cuda.is_available():
        raise bad_config("the pod was promised a GPU but CUDA finds none: check the device plugin and the image's CUDA")
    has_bf16 = torch.cuda.get_device_capability() >= AMPERE
    if precision is Precision.BF16 and not has_bf16:
        name = torch.cuda.get_device_name()
        raise bad_config(f"training.precision: {name} has no BF16; set FP16 or Auto")
    auto = torch.bfloat16 if has_bf16 else torch.float16
    wanted = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16, Precision.FP32: torch.float32}
    return Compute("cuda", wanted.get(precision, auto))


def check_fp8(quantization: Quantization) -> None:
    """Raises StepFailed InvalidSpec where products in FP8 are asked for and this GPU has none."""
    if quantization.products == "FP8" and torch.cuda.get_device_capability() < ADA:
        name = torch.cuda.get_device_name()
        raise bad_config(
            f"training.quantization.products: {name} has no FP8, which GPUs have from Ada and Hopper on; set it to Compute, or"
            " take another GPU"
        )


def trained_weights_type(method: Method, compute: Compute, strategy: Strategy = Strategy.DDP) -> torch.dtype:
    """BF16 for QLoRA in BF16, as its paper has it; float32 for all else, lest small updates round away.

    FSDP shares out weights of one type only, so adapters then have the base's. With ZeRO all have the compute type, and the
    optimizer a copy in float32.
    """
    if strategy in STAGES or (strategy is Strategy.FSDP and method is not Method.FULL):
        return compute.dtype
    return torch.bfloat16 if method is Method.QLORA and compute.dtype is torch.bfloat16 else torch.float32


def gpu_name(device: str) -> str | None:
    """The GPU as its driver names it; None on a CPU."""
    return torch.cuda.get_device_name() if device == "cuda" else None


def peak_memory(device: str) -> int:
    """Most bytes held so far: of the GPU's memory, or resident on a CPU."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        outside = total - free - torch.cuda.memory_reserved()  # the CUDA context and what libraries take for themselves
        return int(torch.cuda.max_memory_reserved() + outside)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
