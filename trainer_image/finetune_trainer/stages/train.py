"""Train: fine-tune the base model on the rendered rows. A resumed run repeats the unbroken one, step by step.

Commits an adapter in PEFT's format (QLoRA, LoRA) or the whole model in BF16 (Full).
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from finetune_trainer import contract, distributed, sharding
from finetune_trainer.context import Context
from finetune_trainer.contract import (
    ArtifactFacts,
    ExitCode,
    FitFacts,
    Method,
    RunConfig,
    StepResult,
    Strategy,
    TrainFacts,
    Training,
)
from finetune_trainer.failures import StepFailed
from finetune_trainer.libraries import quieten
from finetune_trainer.pipeline import ADAPTER, PREPARE
from finetune_trainer.preemption import Activity, Preemption, preempted

ADAPTER_RATE, FULL_RATE = 2e-4, 2e-5  # the customary peak learning rates, an order of magnitude apart
DEFAULT_EPOCHS = 3.0


def run(context: Context) -> StepResult | None:
    """Train and commit; None on ranks other than the first.

    Raises StepFailed: BadConfig, NonFiniteLoss, VerificationFailed, Preempted, LostRank, WorldIncomplete.
    """
    done = context.committed()
    if done is not None:
        return done
    preemption = Preemption()
    preemption.install()
    try:
        quieten()
        distributed.join(context.run.devices)
        with distributed.lost_ranks():
            return _train(context, preemption)
    finally:
        preemption.restore()


def _train(context: Context, preemption: Preemption) -> StepResult | None:
    from transformers import PrinterCallback

    from finetune_trainer import acceleration, card, checkpoint, model, verify
    from finetune_trainer.loop import Loop, ReportProgress, rows
    from finetune_trainer.validation import StopEarly

    training, fingerprint = context.run.training, context.fingerprint(context.step.name)
    compute = model.compute_for(training.precision, context.run.devices)
    fit = distributed.of_first(lambda: _fit(context))
    sharded = fit.strategy is Strategy.FSDP
    _check(training, on_cpu=compute.device == "cpu", sharded=sharded)

    context.progress("loading the base model")
    with distributed.first_on_node():
        _, model_folder = context.model()
        _, data_folder = context.data()
    tokenizer = model.load_tokenizer(model_folder)
    network = model.load_base(model_folder, training.method, compute, acceleration.attention(compute), sharded=sharded)
    if training.method is not Method.FULL:
        network = model.add_adapters(network, training)
    if not sharded:  # the fused path holds on to whole weights
        acceleration.accelerate(network, compute)

    saving = checkpoint.SaveCheckpoints(context.store, fingerprint, context.attempt, training, preemption)
    stopping = [StopEarly(training.early_stopping.patience)] if training.early_stopping else []
    arguments = _arguments(context.run, fit, compute, context.scratch / "train")
    if sharded and compute.device == "cpu":
        sharding.allow_on_cpus()
    loop = Loop(
        model=network,
        args=arguments,
        train_dataset=rows(data_folder / "train.jsonl"),
        eval_dataset=rows(data_folder / "validation.jsonl"),
        processing_class=tokenizer,
        callbacks=[saving, *stopping],
    )
    if sharded:
        sharding.check(loop)
    loop.remove_callback(PrinterCallback)
    loop.add_callback(ReportProgress(context, loop))
    loop.set_trained_type(model.trained_weights_type(training.method, compute, sharded=sharded))
    loop.set_warmup(training.warmup_ratio)
    before = verify.trace(network)
    resume = checkpoint.restore(context.store, fingerprint, Path(loop.args.output_dir), sharded=sharded)

    started = time.monotonic()
    preemption.activity = Activity.TRAINING
    try:
        loop.train(resume_from_checkpoint=None if resume is None else str(resume))
    except StepFailed as failure:
        if failure.exit_code is ExitCode.PREEMPTED:
            saving.save_unfinished(loop)
        raise
    if loop.state.global_step < loop.state.max_steps and not any(stop.stopped for stop in stopping):
        raise preempted(f"after step {loop.state.global_step}")
    preemption.activity = Activity.COMMITTING

    if training.keep_checkpoint == "Best":
        saving.load_best(loop)
    verify.check_trained(before, network, loop.state.global_step)
    facts = TrainFacts(
        steps=loop.state.global_step,
        loss=_mean_of_last_tenth(loop.losses()),
        validation_loss=loop.validation_loss(),
        tokens=int(loop.state.num_input_tokens_seen),
        seconds=round(time.monotonic() - started, 3),
        world_size=loop.args.world_size,
        resumed_from_step=0 if resume is None else int(resume.name.rpartition("-")[2]),
        peak_memory_bytes=model.peak_memory(compute.device),
    )
    noted = {PREPARE: context.fingerprint(PREPARE)} | loop.first_row(data_folder / "train.jsonl")
    folder = _save(loop, tokenizer, context)
    if not distributed.is_first():
        return None
    card.write(folder, context, facts)
    result = StepResult(step=context.step.name, fingerprint=fingerprint, train=facts, fit=fit, artifact=_made(training))
    committed = context.commit(folder, result, noted)
    context.store.drop_checkpoints(fingerprint, keep=0)
    return committed


# ── What the run asks for, in TRL's words ─────────────────────────────────────────────────────────────────────────────


def _fit(context: Context) -> FitFacts:
    """Micro-batch and gradient checkpointing: what the user set, else what the memory estimate chose.

    After the GPU's memory did not hold that, the operator names a smaller micro-batch; more of them make the same step.
    """
    fit = context.prepared().fit
    if fit is None:
        message = "the prepared rows come without a memory estimate: remove their entry, so that they are prepared again"
        raise StepFailed(ExitCode.STORE_UNAVAILABLE, "EntryIncomplete", message)
    smaller = os.environ.get(contract.ENV_MICRO_BATCH_SIZE)
    return fit if smaller is None else fit.model_copy(update={"micro_batch_size": int(smaller)})


def _check(training: Training, *, on_cpu: bool, sharded: bool) -> None:
    """Raises StepFailed BadConfig for what these devices can't do."""
    if training.packing and on_cpu:
        raise _refused("training.packing needs a GPU's attention kernel to keep packed rows apart: set it to false")
    if sharded and training.keep_checkpoint == "Best":
        raise _refused("training.keepCheckpoint: FSDP keeps no weights but the last; set Last, or parallelism.strategy DDP")


def _arguments(run: RunConfig, fit: FitFacts, compute: Any, folder: Path) -> Any:
    import torch
    from transformers.training_args import OptimizerNames
    from trl import SFTConfig

    from finetune_trainer.acceleration import uses_varlen

    training = run.training
    optimizer = _optimizer(training, compute.device)
    known = sorted(name.value for name in OptimizerNames)
    if optimizer not in known:
        raise _refused(f"training.optimizer: transformers knows no {optimizer}; use Auto or one of {', '.join(known)}")
    full = training.method is Method.FULL
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=fit.micro_batch_size,
        per_device_eval_batch_size=fit.micro_batch_size,
        gradient_accumulation_steps=training.global_batch_size // (fit.micro_batch_size * run.devices.world_size),
        ddp_find_unused_parameters=False,
        **(sharding.arguments() if fit.strategy is Strategy.FSDP else {}),
        num_train_epochs=training.epochs or DEFAULT_EPOCHS,
        max_steps=training.max_steps or -1,
        learning_rate=training.learning_rate or (FULL_RATE if full else ADAPTER_RATE),
        lr_scheduler_type=training.schedule,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=optimizer,
        seed=training.seed,
        bf16=compute.dtype is torch.bfloat16,
        fp16=compute.dtype is torch.float16,
        use_cpu=compute.device == "cpu",
        gradient_checkpointing=fit.gradient_checkpointing,
        max_length=training.max_length if training.packing else None,  # prepare dropped what is longer
        packing=training.packing,
        padding_free=uses_varlen(compute),
        eval_packing=False,
        eval_strategy="steps" if training.evaluate_every_steps else "no",
        eval_steps=training.evaluate_every_steps,
        neftune_noise_alpha=training.neftune_noise_alpha,
        save_strategy="no",  # SaveCheckpoints decides
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would replace a NaN by the mean of the steps before
        include_num_input_tokens_seen="non_padding",
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=compute.device == "cuda",
        dataloader_num_workers=2 if compute.device == "cuda" else 0,  # a batch is made while the GPU works on the last
    )


def _optimizer(training: Training, device: str) -> str:
    if training.optimizer != "Auto":
        return training.optimizer
    if device == "cpu":
        return "adamw_torch"
    return "adamw_bnb_8bit" if training.method is Method.FULL else "adamw_torch_fused"


# ── What came of it ───────────────────────────────────────────────────────────────────────────────────────────────────


def _save(loop: Any, tokenizer: Any, context: Context) -> Path:
    """Adapter or model as it will be committed, gathered from all ranks and written by the first.

    The base is named by its uri, not by a path of this pod.
    """
    import torch

    context.progress("saving", loop.state.global_step, loop.state.global_step)
    folder, network = context.scratch / "output", loop.model
    if context.run.training.method is Method.FULL:
        network.to(torch.bfloat16)
    else:
        for config in network.peft_config.values():
            config.base_model_name_or_path = context.run.model.uri
    weights = sharding.gathered(network, keep=distributed.is_first()) if loop.is_fsdp_enabled else None
    if distributed.is_first():
        network.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
    return folder


def _made(training: Training) -> ArtifactFacts:
    made = "Safetensors" if training.method is Method.FULL else "PEFT"
    return ArtifactFacts(name=ADAPTER, format=made, path="", digest="", bytes=0)  # the store fills the rest in


def _mean_of_last_tenth(losses: list[float]) -> float:
    last = losses[-max(1, math.ceil(len(losses) / 10)) :]
    return sum(last) / len(last)


def _refused(message: str) -> StepFailed:
    return StepFailed(ExitCode.BAD_CONFIG, "BadConfig", message)
