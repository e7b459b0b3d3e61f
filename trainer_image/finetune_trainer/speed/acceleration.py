"""What makes a training step fast on a GPU, chosen by what is there: attention, fused kernels, the fused LoRA path.

Everything here changes speed and memory, never what is computed; tests/trainer/speed/test_acceleration.py holds each part
against the plain one, and docs/training-speed.md has what each gains.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.reports import FitFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Method
from finetune_trainer.memory.setting import Setting, layer_code, records_layers
from finetune_trainer.speed.activations import keep_products
from finetune_trainer.speed.add_norm import join
from finetune_trainer.speed.casts import copy_once
from finetune_trainer.speed.fixed_lines import Line
from finetune_trainer.speed.recorded_layers import CudaGraphs, RecordedLayers

if TYPE_CHECKING:
    from finetune_trainer.model.compute import Compute


OF_A_LAYER = 7  # linear layers on the fused path: four of attention, three of a gated MLP


def attention(folder: Path, compute: Compute, *, packing: bool = False) -> str | None:
    """Name for transformers' `attn_implementation` by which rows of this model may share a line of tokens; None where they are
    padded, and transformers chooses. They share one wherever there are kernels for it, on GPUs from Ampere on and in 16 bits;
    elsewhere where `packing` asks for it.
    """
    from finetune_trainer.speed.attention import implementation

    kernels = compute.device == "cuda" and compute.dtype in (torch.bfloat16, torch.float16)
    kernels = kernels and torch.cuda.get_device_capability() >= (8, 0)
    return implementation(folder, on_gpu=kernels) if kernels or packing else None


def accelerate(
    network: Any, asked: Any, compute: Compute, run: RunConfig, fit: FitFacts, folder: Path
) -> RecordedLayers | None:
    """Put the fast parts into a loaded model, adapters included, and Selective checkpointing, where the trainer's arguments
    `asked` then say whether it is the layers' own. On CPUs nothing else changes, nor where DeepSpeed shares the weights out: it
    knows of them by the modules' own forward. Returns the model's layers where their work is recorded.
    """
    selective, strategy = fit.gradient_checkpointing == "Selective", fit.strategy or Strategy.DDP
    fused = _fused(network, compute, run, fit)
    layers = fused_layers(network, fused)
    if selective and layers:
        selective = asked.gradient_checkpointing = False
    elif selective and _taken_for_fused(run, compute, strategy):
        print("whole layers are computed again: not all are fused, and products take more than was estimated", flush=True)
        selective = False
    if selective:
        keep_products(network, 0 if run.training.method is Method.FULL else run.training.lora.rank)
    frozen = bool(layers) and _adapters_alone_train(layers)
    if frozen and strategy is not Strategy.FSDP and not asked.gradient_checkpointing:
        join(layers)  # before Liger puts its own norm where Llama's was, which layers' norms are compared with
    if compute.device == "cuda" and strategy is not Strategy.ZERO3:
        if run.training.method is Method.FULL:
            copy_once(network)
        # Where products are kept as they come, Liger may not rotate: it does so in place.
        _liger(network, swiglu=not fused, rope=not selective)
    line = _line(folder, run, fit, compute) if frozen else None
    return None if line is None else RecordedLayers(layers, line, CudaGraphs())


def _taken_for_fused(run: RunConfig, compute: Compute, strategy: Strategy) -> bool:
    """Whether Auto chose by what fused layers keep, which no config.json tells for certain: lora.targets or another MLP leave
    some to PEFT."""
    code = layer_code(run.training, strategy, on_gpu=compute.device == "cuda")
    return code == "Fused" and run.training.gradient_checkpointing == "Auto"


def _fused(network: Any, compute: Compute, run: RunConfig, fit: FitFacts) -> int:
    """How many linear layers are on the fused path from here on."""
    if compute.device != "cuda" or fit.strategy is Strategy.ZERO3:
        return 0
    from finetune_trainer.speed.fused_lora import fuse

    in_fp8 = run.training.in_fp8
    keep = None if fit.gradient_checkpointing != "Selective" else fit.kept_layers or 0
    fused = fuse(network, in_fp8=in_fp8, keep=keep)
    if in_fp8:
        print(f"{fused} linear layers multiply in FP8 while they train", flush=True)
    return fused


def _line(folder: Path, run: RunConfig, fit: FitFacts, compute: Compute) -> Line | None:
    """The line that each micro-batch of this run can be filled up to, where the layers' work is to be recorded over it."""
    from finetune_trainer.speed.attention import asked_by

    training, strategy = run.training, fit.strategy or Strategy.DDP
    setting = Setting(fit.micro_batch_size, fit.gradient_checkpointing, strategy, run.devices.world_size)
    if compute.dtype is not torch.bfloat16 or not records_layers(training, setting, on_gpu=True):
        return None
    asked = asked_by(folder)  # what flash attention has no word for is compiled for each line anew
    return None if asked is None or asked.names else Line(fit.micro_batch_size * training.max_length, training.max_length)


def _layers(network: Any) -> list[nn.Module]:
    """The decoder's layers."""
    inner = network.get_base_model() if hasattr(network, "get_base_model") else network
    layers = getattr(inner.base_model, "layers", None)
    return [*layers] if isinstance(layers, nn.ModuleList) else []


def fused_layers(network: Any, fused: int) -> list[nn.Module]:
    """The decoder's layers, if `fused` linear layers are all that they have."""
    layers = _layers(network) if fused else []
    return layers if fused == OF_A_LAYER * len(layers) else []


def _adapters_alone_train(layers: list[nn.Module]) -> bool:
    trained = (name for layer in layers for name, weight in layer.named_parameters() if weight.requires_grad)
    return all("lora_A" in name or "lora_B" in name for name in trained)


def _liger(network: Any, *, swiglu: bool, rope: bool) -> None:
    """Liger's kernels where it knows the architecture. The loss head is TRL's own, the fused path has its own MLP."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    inner = network.get_base_model() if hasattr(network, "get_base_model") else network
    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(inner.config.model_type)
    if apply is None:
        return
    wanted = {"rope": rope, "rms_norm": True, "swiglu": swiglu, "cross_entropy": False}
    wanted["fused_linear_cross_entropy"] = False
    known = apply.__code__.co_varnames[: apply.__code__.co_argcount]
    apply(model=inner, **{name: on for name, on in wanted.items() if name in known})
