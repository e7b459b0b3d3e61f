"""Settings of training that don't go together, refused before anything is read. (The API server's rules say the same of what a
job asks for; what Auto chose, and a run without a cluster, meet them here.)
"""

from __future__ import annotations

from finetune_trainer import split_init
from finetune_trainer.adapter_fields import NF4, Quantization
from finetune_trainer.contract import SHARES_WEIGHTS, ExitCode, Method, Strategy, Training
from finetune_trainer.failures import StepFailed

OF_BITSANDBYTES = ("bnb", "8bit", "4bit", "paged")  # in names of optimizers


def check(training: Training, strategy: Strategy) -> None:
    """Raises StepFailed BadConfig."""
    if training.quantization != NF4 and training.method is not Method.QLORA:
        raise _refused(f"training.quantization is for method QLoRA; set that, or remove it for {training.method}")
    if training.quantization.bits == 8 and training.quantization != Quantization(bits=8):
        raise _refused("training.quantization.type and .doubleQuantization are for 4 bits; set bits to 4, or remove them")
    if training.lora.modules_to_save and training.method is Method.FULL:
        raise _refused("training.lora.modulesToSave is for methods QLoRA and LoRA, as Full trains every weight; remove it")
    split_init.check(training, sharded=strategy is not Strategy.DDP)
    if training.gradient_checkpointing == "Selective" and strategy is Strategy.ZERO3 and training.method is not Method.FULL:
        raise _refused("training.gradientCheckpointing: ZeRO3 with adapters can't have Selective; set Auto, or strategy FSDP")
    if strategy is not Strategy.DDP:
        _check_shared_out(training, strategy)


def _check_shared_out(training: Training, strategy: Strategy) -> None:
    if strategy in SHARES_WEIGHTS and training.quantization.bits == 8:
        raise _refused(f"training.quantization.bits: {strategy} can't share out 8-bit weights; set 4, or strategy DDP")
    if strategy is Strategy.ZERO3 and training.method is Method.QLORA:
        raise _refused("parallelism.strategy: ZeRO3 can't share out QLoRA's quantized weights; set FSDP or ZeRO2")
    if training.lora.modules_to_save:
        raise _refused(f"training.lora.modulesToSave: {strategy} takes weights of one number type only; set strategy DDP")
    if any(word in training.optimizer for word in OF_BITSANDBYTES):
        raise _refused(f"training.optimizer: {training.optimizer} can't work on the shares of {strategy}; set Auto")
    if training.keep_checkpoint == "Best":
        raise _refused(f"training.keepCheckpoint: {strategy} keeps no weights but the last; set Last, or strategy DDP")


def _refused(message: str) -> StepFailed:
    return StepFailed(ExitCode.BAD_CONFIG, "BadConfig", message)
