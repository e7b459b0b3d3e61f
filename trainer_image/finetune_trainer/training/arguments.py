"""What a run asks for, in TRL's words: the configuration of its trainer from spec.training, the fit and the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.training_args import OptimizerNames

from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import FitFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Method, Training
from finetune_trainer.failures import StepFailed
from finetune_trainer.model.compute import Compute
from finetune_trainer.ranks import sharding
from finetune_trainer.training import tracking
from finetune_trainer.training.objectives import trained_by


def arguments(run: RunConfig, fit: FitFacts, compute: Compute, folder: Path, *, padded: bool = True) -> Any:
    """The arguments of the objective's trainer. Without padding, rows of a micro-batch share a line of tokens.

    Raises StepFailed InvalidSpec for an optimizer or a tracker that isn't there.
    """
    return trained_by(run.training).config(run.training, _shared(run, fit, compute, folder), padded)


def _shared(run: RunConfig, fit: FitFacts, compute: Compute, folder: Path) -> dict[str, Any]:
    """What all objectives take."""
    training = run.training
    optimizer = _optimizer(training, compute.device, fit.strategy)
    known = sorted(name.value for name in OptimizerNames)
    if optimizer not in known:
        message = f"training.optimizer: transformers knows no {optimizer}; use Auto or one of {', '.join(known)}"
        raise StepFailed(StepReason.InvalidSpec, message)
    return dict(
        output_dir=str(folder),
        per_device_train_batch_size=fit.micro_batch_size,
        per_device_eval_batch_size=fit.micro_batch_size,
        gradient_accumulation_steps=training.global_batch_size // (fit.micro_batch_size * run.devices.world_size),
        ddp_find_unused_parameters=False,
        **sharding.arguments(fit.strategy),
        num_train_epochs=training.passes,
        max_steps=training.max_steps or -1,
        learning_rate=training.peak_rate,
        lr_scheduler_type=training.schedule,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=optimizer,
        seed=training.seed,
        bf16=compute.dtype is torch.bfloat16,
        fp16=compute.dtype is torch.float16,
        use_cpu=compute.device == "cpu",
        gradient_checkpointing=fit.gradient_checkpointing != "Off",
        eval_strategy="steps" if training.evaluate_every_steps else "no",
        eval_steps=training.evaluate_every_steps,
        neftune_noise_alpha=training.neftune_noise_alpha,
        save_strategy="no",  # SaveCheckpoints decides
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would replace a NaN by the mean of the steps before
        include_num_input_tokens_seen="non_padding",
        disable_tqdm=True,
        **tracking.arguments(run, folder.parent / "output"),
        dataloader_pin_memory=compute.device == "cuda",
        dataloader_num_workers=2 if compute.device == "cuda" else 0,  # a batch is made while the GPU works on the last
    )


def _optimizer(training: Training, device: str, strategy: Strategy | None) -> str:
    if training.optimizer != "Auto":
        return training.optimizer
    if device == "cpu":
        return "adamw_torch"
    whole = training.method is Method.FULL and (strategy or Strategy.DDP) is Strategy.DDP  # others share the states out
    return "adamw_bnb_8bit" if whole else "adamw_torch_fused"
