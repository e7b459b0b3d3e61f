"""Settings of training that don't go together. (The API server's rules say the same of what a job asks for; what Auto chose,
and a run without a cluster, meet them here.)
"""

from __future__ import annotations

from finetune_trainer.contract.adapters import NF4, SPLIT_INITS, Quantization
from finetune_trainer.contract.devices import SHARES_WEIGHTS, Strategy
from finetune_trainer.contract.objectives import WITH_REFERENCE
from finetune_trainer.contract.training import Method, Training

OF_BITSANDBYTES = ("bnb", "8bit", "4bit", "paged")  # in names of optimizers


def refusal(training: Training, strategy: Strategy) -> str | None:
    """What does not go together, and the remedy; None where all does."""
    if training.quantization != NF4 and training.method is not Method.QLORA:
        return f"training.quantization is for method QLoRA; set that, or remove it for {training.method}"
    if training.quantization.bits == 8 and training.quantization != Quantization(bits=8):
        return "training.quantization.type and .doubleQuantization are for 4 bits; set bits to 4, or remove them"
    if training.lora.modules_to_save and training.method is Method.FULL:
        return "training.lora.modulesToSave is for methods QLoRA and LoRA, as Full trains every weight; remove it"
    if sentence := _refused_beginning(training, sharded=strategy is not Strategy.DDP):
        return sentence
    if training.gradient_checkpointing == "Selective" and strategy is Strategy.ZERO3 and training.method is not Method.FULL:
        return "training.gradientCheckpointing: ZeRO3 with adapters can't have Selective; set Auto, or strategy FSDP"
    return None if strategy is Strategy.DDP else _refused_shares(training, strategy)


def _refused_shares(training: Training, strategy: Strategy) -> str | None:
    if strategy in SHARES_WEIGHTS and training.quantization.bits == 8:
        return f"training.quantization.bits: {strategy} can't share out 8-bit weights; set 4, or strategy DDP"
    if strategy is Strategy.ZERO3 and training.method is Method.QLORA:
        return "parallelism.strategy: ZeRO3 can't share out QLoRA's quantized weights; set FSDP or ZeRO2"
    if training.lora.modules_to_save:
        return f"training.lora.modulesToSave: {strategy} takes weights of one number type only; set strategy DDP"
    if any(word in training.optimizer for word in OF_BITSANDBYTES):
        return f"training.optimizer: {training.optimizer} can't work on the shares of {strategy}; set Auto"
    if training.keep_checkpoint == "Best":
        return f"training.keepCheckpoint: {strategy} keeps no weights but the last; set Last, or strategy DDP"
    return None


def _refused_beginning(training: Training, *, sharded: bool) -> str | None:
    """Adapters that begin as a part of the weights (model/split_init.py)."""
    lora = training.lora
    if lora.init not in SPLIT_INITS or training.method is Method.FULL:
        return None
    field = f"training.lora.init {lora.init}"
    if training.method is Method.QLORA:
        return f"{field} is for method LoRA: what is left of quantized weights, quantized anew, is another base"
    if lora.dora or lora.modules_to_save or sharded or training.objective in WITH_REFERENCE:
        return f"{field} goes with neither dora, modulesToSave, strategy FSDP nor objectives DPO and KTO"
    return None
