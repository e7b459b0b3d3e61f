"""Ranks that share one model out, and what must be known of it outside of the training loop.

FSDP    weights, gradients and optimizer state; one decoder layer at a time is whole. What is in the checkpoints and in the
        result is gathered, so that any number of ranks can go on from it
ZeRO    zero.py
"""

from __future__ import annotations

from typing import Any

from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed
from finetune_trainer.ranks import distributed, zero


def arguments(strategy: Strategy | None) -> dict[str, Any]:
    """What transformers' TrainingArguments take for it."""
    if strategy in zero.STAGES:
        return zero.arguments(strategy)
    if strategy is not Strategy.FSDP:
        return {}
    wrap = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "FULL_STATE_DICT", "version": 2}
    return {"fsdp": True, "fsdp_config": wrap}


def allow_on_cpus(strategy: Strategy) -> None:
    """Make accelerate share out the model among CPUs. Call it after the Trainer's arguments are made and before the model
    is loaded.

    torch and DeepSpeed can do it, through gloo. But accelerate skips FSDP and DeepSpeed without a word where it sees no
    accelerator. So it is told that the ranks are accelerators; it then sets its type to FSDP itself.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    if strategy is Strategy.FSDP:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    elif strategy in zero.STAGES:
        PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
        zero.allow_on_cpus()


def check(loop: Any, strategy: Strategy) -> None:
    """Raises StepFailed where the Trainer would train without sharing out although it was asked for."""
    taken = {Strategy.FSDP: loop.is_fsdp_enabled} | dict.fromkeys(zero.STAGES, loop.is_deepspeed_enabled)
    if not taken.get(strategy, True):
        message = f"spec.parallelism.strategy {strategy} was asked for, but accelerate did not take it: nothing was trained"
        raise StepFailed(StepReason.NotSharded, message)


def gathered(loop: Any, dtype: Any, *, keep: bool) -> dict[str, Any] | None:
    """The trained weights as they would be without shards, one by one from all ranks; {} where they are not kept.

    `dtype` is what ZeRO's float32 ones become. None where each rank has them whole.
    """
    import torch

    if not (loop.is_deepspeed_enabled or loop.is_fsdp_enabled):
        return None
    whole = zero.gathered(loop.model, dtype, keep=keep) if loop.is_deepspeed_enabled else _gathered(loop.model, keep)
    if torch.cuda.is_available():  # what a rank was to send is lost where it leaves before its GPU has sent it
        torch.cuda.synchronize()
    distributed.agree(0)
    return whole


def _gathered(network: Any, keep: bool) -> dict[str, Any]:
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    whole: dict[str, Any] = {}
    for name, value in network.state_dict().items():
        if name in trained:
            tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
            if keep:
                whole[name] = tensor.cpu()
    return whole
