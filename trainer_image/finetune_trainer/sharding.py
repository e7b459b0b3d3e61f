"""FSDP: ranks share out weights, gradients and optimizer state, one decoder layer at a time is whole.

What is in the checkpoints and in the result is gathered, so that any number of ranks can go on from it.
"""

from __future__ import annotations

from typing import Any

from finetune_trainer.contract import ExitCode
from finetune_trainer.failures import StepFailed


def arguments() -> dict[str, Any]:
    """What transformers' TrainingArguments take for it."""
    wrap = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "FULL_STATE_DICT", "version": 2}
    return {"fsdp": True, "fsdp_config": wrap}


def allow_on_cpus() -> None:
    """Call it before the Trainer is made, where the ranks are CPUs: torch shards there as well, with gloo.

    accelerate looks at FSDP for accelerators only and passes over it without a word, so it is told that the ranks are
    some; it then writes FSDP in that place itself.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def check(trainer: Any) -> None:
    """Raises StepFailed where the Trainer would train without sharding although it was asked for."""
    if not trainer.is_fsdp_enabled:
        message = "spec.parallelism.strategy FSDP was asked for, but accelerate did not take it: nothing was trained"
        raise StepFailed(ExitCode.WORLD_INCOMPLETE, "NotSharded", message)


def gathered(network: Any, *, keep: bool) -> dict[str, Any]:
    """The trained weights as they would be without shards, one by one from all ranks; {} where they are not kept."""
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    whole: dict[str, Any] = {}
    for name, value in network.state_dict().items():
        if name in trained:
            tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
            if keep:
                whole[name] = tensor.cpu()
    return whole
