"""What may be chosen where memory is short (choice.py), and what then computes the layers. No torch, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.objectives import Objective
from finetune_trainer.contract.training import Method, Recomputing, Training

Code = Literal["PyTorch", "Liger", "Fused", "Dropout", "DoRA", "DoRADropout"]
# On the fused path, if each has an adapter: what all linear layers of a decoder's layer are called where it can be fused.
LINEAR = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
RECORDED_TOKENS = 6144  # of a micro-batch: with more, the GPU has enough to do while Python starts its kernels


@dataclass(frozen=True)
class Setting:
    """How a model is trained on one device."""

    micro_batch_size: int
    checkpointing: Recomputing
    strategy: Strategy = Strategy.DDP
    ranks: int = 1
    kept_layers: int = 0  # that keep all with Selective, on the fused path


def layer_code(training: Training, strategy: Strategy, on_gpu: bool) -> Code:
    """What the trainer computes a layer with."""
    if not on_gpu or strategy is Strategy.ZERO3:
        return "PyTorch"
    if training.method is Method.FULL:
        return "Liger"
    if training.lora.dora:
        return "DoRADropout" if training.lora.dropout > 0 else "DoRA"
    if training.lora.dropout > 0:
        return "Dropout"
    adapted = {name.rpartition(".")[2] for name in training.lora.targets}
    whole = adapted == {"all-linear"} or adapted >= LINEAR
    return "Fused" if whole and training.quantization.bits != 8 else "Liger"  # fused layers know no 8-bit weights


def records_layers(training: Training, setting: Setting, *, on_gpu: bool) -> bool:
    """Whether the layers' work is recorded and started as one (speed/recorded_layers.py): where few tokens of packed rows leave
    the GPU waiting for Python."""
    tokens = setting.micro_batch_size * training.max_length
    alone = training.method is Method.QLORA and setting.strategy is Strategy.DDP and setting.ranks == 1
    fused = layer_code(training, setting.strategy, on_gpu) == "Fused" and setting.checkpointing != "Full"
    same = training.objective is Objective.SFT and training.packing and training.neftune_noise_alpha is None
    return alone and fused and same and tokens <= RECORDED_TOKENS
