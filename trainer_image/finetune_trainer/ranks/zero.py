"""DeepSpeed's ZeRO (Rajbhandari et al. 2020): ranks share out gradients and optimizer state, in stage 3 the weights as well.

What is trained is there twice: in the compute type, which the passes read, and in float32, shared out, which the optimizer
moves. The result is taken from the second, and so is a checkpoint, of which each rank writes its share.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from finetune_trainer.contract.devices import Strategy
from finetune_trainer.memory.estimate import LIVE_PARAMETERS, REDUCED_AT_ONCE

STAGES = {Strategy.ZERO2: 2, Strategy.ZERO3: 3}


def arguments(strategy: Strategy) -> dict[str, Any]:
    """What transformers' TrainingArguments take for it, which fill in each "auto". While they are there, transformers loads
    models in shares for stage 3.
    """
    zero = {
        "stage": STAGES[strategy],
        "contiguous_gradients": True,
        "reduce_bucket_size": REDUCED_AT_ONCE,
        "allgather_bucket_size": REDUCED_AT_ONCE,
        "stage3_prefetch_bucket_size": REDUCED_AT_ONCE,
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": LIVE_PARAMETERS,
        "stage3_max_reuse_distance": LIVE_PARAMETERS,
        "stage3_gather_16bit_weights_on_model_save": False,  # a checkpoint has each rank's share
    }
    config = {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
    }
    return {"deepspeed": config}


def allow_on_cpus() -> None:
    """Join DeepSpeed to the ranks that have met, as accelerate does on GPUs. Without its exchange through shared memory, which
    it would compile, and images have no compiler for."""
    import sys

    import deepspeed.comm.torch  # in whose package torch itself has that name

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)


def whole(parameter: Any) -> AbstractContextManager[Any]:
    """While it is open, a weight that stage 3 shared out is there as a whole, on all ranks, which must all call this."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter])
    return gathered


def master(parameter: Any) -> Any:
    """A trained weight in float32 as the optimizer has it, put together from all ranks: each of them must call this.

    None where ZeRO does not hold it. The weight in BF16 moves only once this one has moved by a step of BF16.
    """
    if not (hasattr(parameter, "_hp_mapping") or hasattr(parameter, "_z3_optimizer")):
        return None
    from deepspeed.utils import safe_get_full_fp32_param

    found = safe_get_full_fp32_param(parameter)
    return None if found is None else found.reshape(getattr(parameter, "ds_shape", parameter.shape))


def gathered(network: Any, dtype: Any, *, keep: bool) -> dict[str, Any]:
    """The trained weights as the optimizer has them, in `dtype`, one by one from all ranks; {} where they are not kept."""
    found: dict[str, Any] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            whole_one = master(parameter)
            if keep:
                found[name] = whole_one.to("cpu", dtype, copy=True)
    return found


def written_by(checkpoint: Path) -> tuple[Strategy | None, int]:
    """Which stage of ZeRO wrote a checkpoint, with how many ranks; None and 0 where it is another's."""
    ranks = len([*checkpoint.glob("global_step*/*_optim_states.pt")])
    if not ranks:
        return None, 0
    return Strategy.ZERO3 if any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt")) else Strategy.ZERO2, ranks
