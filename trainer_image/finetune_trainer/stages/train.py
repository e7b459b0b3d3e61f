"""Train: fine-tune the base model on the rendered rows. A resumed run repeats the unbroken one, step by step.

Commits an adapter in PEFT's format (QLoRA, LoRA) or the whole model in BF16 (Full).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.context import Context
from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.fields import Model
from finetune_trainer.contract.pipeline import ADAPTER, PREPARE
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import ArtifactFacts, FitFacts, StepResult, TrainFacts
from finetune_trainer.contract.training import Method
from finetune_trainer.data import rendered
from finetune_trainer.failures import StepFailed
from finetune_trainer.inputs import CURVE
from finetune_trainer.libraries import quieten
from finetune_trainer.memory.fit import check
from finetune_trainer.model import split_init
from finetune_trainer.ranks import distributed, sharding
from finetune_trainer.training.preemption import Activity, Preemption, preempted

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from finetune_trainer.model.compute import Compute
    from finetune_trainer.speed.recorded_layers import RecordedLayers
    from finetune_trainer.training.checkpoint import SaveCheckpoints
    from finetune_trainer.training.loop import Loop
    from finetune_trainer.training.validation import StopEarly


def run(context: Context) -> StepResult | None:
    """Train and commit; None on ranks other than the first.

    Raises StepFailed: InvalidSpec, NonFiniteLoss, VerificationFailed, Preempted, LostRank, WorldIncomplete.
    """
    done = context.committed()
    if done is not None:
        return done
    preemption = Preemption(context.pod.grace_seconds)
    preemption.install()
    try:
        quieten()
        distributed.join(context.run.devices)
        with distributed.lost_ranks():
            return _train(context, preemption)
    finally:
        preemption.restore()


def _train(context: Context, preemption: Preemption) -> StepResult | None:
    from finetune_trainer.training import checkpoint, hang, moved
    from finetune_trainer.training.validation import StopEarly

    training, fingerprint = context.run.training, context.inputs.fingerprint(context.step.name)
    loaded = _load(context)
    saving = checkpoint.SaveCheckpoints(context.store, fingerprint, context.attempt, training, preemption)
    stopping = [StopEarly(training.early_stopping.patience)] if training.early_stopping else []
    watchdog = hang.watchdog(context.pod.hang_after)
    loop = _loop(context, loaded, [saving, *stopping, watchdog])
    before = moved.trace(loaded.network)
    folder, ranks = Path(loop.args.output_dir), loop.args.world_size
    resume = checkpoint.restore(context.store, fingerprint, folder, loaded.fit.strategy, ranks)

    started = time.monotonic()
    preemption.activity = Activity.TRAINING
    with watchdog:
        _run(loop, resume, saving, stopping)
    preemption.activity = Activity.COMMITTING

    if training.keep_checkpoint == "Best":
        saving.load_best(loop)
    moved.check_trained(before, loaded.network, loop.state.global_step)
    return _commit(context, loaded, loop, _facts(loop, resume, started))


# ── What is loaded, and the loop over it ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Loaded:
    """What a run trains with: the network where it trains, its tokenizer, and the folder with the rendered rows."""

    compute: Compute
    fit: FitFacts
    network: Any
    initial: Path | None  # the adapters as they begin, where they are a part of the weights
    reference: Any  # frozen, where the loss compares with another model than the network without its adapters
    tokenizer: Any
    rows: Path
    arguments: Any  # of TRL's trainer
    recorded: RecordedLayers | None

    @property
    def strategy(self) -> Strategy:
        return self.fit.strategy or Strategy.DDP


def _load(context: Context) -> Loaded:
    """Base model with the adapters that the method asks for. Raises StepFailed InvalidSpec before weights are read."""
    from finetune_trainer.model import adapters, loading
    from finetune_trainer.model.compute import check_fp8, compute_for
    from finetune_trainer.model.outline import freeze, modules_of, unreached
    from finetune_trainer.speed import acceleration, activations
    from finetune_trainer.training.arguments import arguments

    training, devices = context.run.training, context.run.devices
    fit = distributed.of_first(lambda: _fit(context))
    check(training, devices.model_copy(update={"strategy": fit.strategy or devices.strategy}))
    compute = compute_for(training.precision, devices)
    check_fp8(training.quantization)
    strategy = fit.strategy or Strategy.DDP
    context.progress("loading the base model")
    with distributed.first_on_node():
        _, model_folder = context.inputs.model()
        _, rows = context.inputs.data()
    attention = acceleration.attention(model_folder, compute, packing=training.packing)
    teachers = [training.distillation.teacher] if training.distillation else []
    read = [model_folder, *map(context.inputs.model_without_weights, teachers)]
    padded = None in [acceleration.attention(folder, compute, packing=training.packing) for folder in read]
    idle = unreached(model_folder)
    # With ZeRO these say how any model is loaded from now on.
    asked = arguments(context.run, fit, compute, context.scratch / "train", padded=padded)
    if compute.device == "cpu":
        sharding.allow_on_cpus(strategy)
    tokenizer, quantization = loading.load_tokenizer(model_folder), training.quantization
    network = loading.load_base(model_folder, training.method, compute, attention, strategy=strategy, quantization=quantization)
    reference = initial = None
    if training.method is not Method.FULL:
        network = adapters.add_adapters(network, training, modules_of(idle))
        initial = split_init.keep(network, training, context.scratch / "initial")
    else:
        freeze(network, idle)
        if training.learning.with_reference:
            reference = loading.load_base(model_folder, training.method, compute, attention)
    if training.distillation is not None:
        reference = _load_teacher(context, training.distillation.teacher, compute)
    if compute.device == "cpu" and fit.gradient_checkpointing != "Off":
        activations.give_memory_back()
    recorded = acceleration.accelerate(network, asked, compute, context.run, fit, model_folder)
    return Loaded(compute, fit, network, initial, reference, tokenizer, rows, asked, recorded)


def _load_teacher(context: Context, which: Model, compute: Compute) -> Any:
    """The teacher as the base is for adapters: quantized for QLoRA, else in the compute type."""
    from finetune_trainer.model import loading
    from finetune_trainer.speed import acceleration

    context.progress("loading the teacher")
    with distributed.first_on_node():
        _, folder = context.inputs.model(which)
    training = context.run.training
    method = Method.LORA if training.method is Method.FULL else training.method
    attention = acceleration.attention(folder, compute, packing=training.packing)
    return loading.load_base(folder, method, compute, attention, quantization=training.quantization)


def _loop(context: Context, loaded: Loaded, callbacks: Sequence[TrainerCallback]) -> Loop:
    """The Trainer of this run, ready to train."""
    from transformers import PrinterCallback

    from finetune_trainer.model.compute import trained_weights_type
    from finetune_trainer.training.loop import ReportProgress
    from finetune_trainer.training.objectives import make_loop
    from finetune_trainer.training.rehearsal import Rehearsal

    training, compute = context.run.training, loaded.compute
    loop = make_loop(
        training,
        loaded.rows,
        loaded.reference,
        model=loaded.network,
        args=loaded.arguments,
        processing_class=loaded.tokenizer,
        callbacks=[*callbacks],
    )
    loop.recorded = loaded.recorded
    sharding.check(loop, loaded.strategy)
    loop.remove_callback(PrinterCallback)
    if not loop.is_deepspeed_enabled:  # whose backward pass can't be without a step
        loop.add_callback(Rehearsal(context, loop, loaded.fit))
    loop.add_callback(ReportProgress(context, loop))
    loop.set_trained_type(trained_weights_type(training.method, compute, loaded.strategy))
    loop.set_warmup(training.warmup_ratio)
    return loop


def _run(loop: Loop, resume: Path | None, saving: SaveCheckpoints, stopping: Sequence[StopEarly]) -> None:
    """All steps that are left. Raises StepFailed Preempted, with the state after the last whole step saved."""
    try:
        loop.train(resume_from_checkpoint=None if resume is None else str(resume))
    except StepFailed as failure:
        if failure.exit_code is ExitCode.PREEMPTED:
            saving.save_unfinished(loop)
        raise
    if loop.state.global_step < loop.state.max_steps and not any(stop.stopped for stop in stopping):
        raise preempted(f"after step {loop.state.global_step}")


def _fit(context: Context) -> FitFacts:
    """Micro-batch and gradient checkpointing: what the user set, else what the memory estimate chose.

    After the GPU's memory did not hold that, the operator names a smaller micro-batch; more of them make the same step. Layers
    then keep no more than they must.
    """
    fit = context.inputs.prepared().fit
    if fit is None:
        message = "the prepared rows come without a memory estimate: remove their entry, so that they are prepared again"
        raise StepFailed(StepReason.EntryIncomplete, message)
    smaller = context.pod.micro_batch_size
    if smaller is None:
        return fit
    if smaller < (least := context.run.training.learning.least_rows):
        objective = context.run.training.objective
        message = f"{objective} compares the rows of a micro-batch, and not even {least} fit: lower spec.training.maxLength"
        raise StepFailed(StepReason.DoesNotFit, message)
    return fit.model_copy(update={"micro_batch_size": smaller, "kept_layers": None})


# ── What came of it ───────────────────────────────────────────────────────────────────────────────────────────────────


def _facts(loop: Loop, resume: Path | None, started: float) -> TrainFacts:
    """Figures of the run that ended; `started` is the monotonic clock's time at its begin."""
    from finetune_trainer.model.compute import peak_memory

    return TrainFacts(
        steps=loop.state.global_step,
        loss=_mean_of_last_tenth([*loop.losses().values()]),
        validation_loss=loop.validation_loss(),
        tokens=int(loop.state.num_input_tokens_seen),
        seconds=round(time.monotonic() - started, 3),
        world_size=loop.args.world_size,
        resumed_from_step=0 if resume is None else int(resume.name.rpartition("-")[2]),
        peak_memory_bytes=peak_memory(loop.args.device.type),
    )


def _commit(context: Context, loaded: Loaded, loop: Loop, facts: TrainFacts) -> StepResult | None:
    """Keep what was trained and drop the checkpoints, on the first rank; None on the others."""
    from finetune_trainer.export import card

    noted = {PREPARE: context.inputs.fingerprint(PREPARE)} | loop.first_row(loaded.rows)
    folder = _save(loop, loaded, context)
    if not distributed.is_first():
        return None
    card.write(folder, context, facts)
    fingerprint = context.inputs.fingerprint(context.step.name)
    made = ArtifactFacts.made(ADAPTER, "Safetensors" if context.run.training.method is Method.FULL else "PEFT")
    fit = loaded.fit.model_copy(update={"measured_bytes": facts.peak_memory_bytes})
    result = StepResult(step=context.step.name, fingerprint=fingerprint, train=facts, fit=fit, artifact=made)
    _keep_curve(context, loop.losses(), result)
    committed = context.commit(folder, result, noted)
    context.store.drop_checkpoints(fingerprint, keep=0)
    return committed


def _keep_curve(context: Context, losses: dict[int, float], result: StepResult) -> None:
    """The loss of each step, for the report. An entry of its own: what is trained has the same digest however it went."""
    folder = context.scratch / CURVE
    folder.mkdir()
    rendered.write_lines(folder, CURVE, ({"step": step, "loss": loss} for step, loss in losses.items()))
    context.keep(CURVE, folder, result.model_copy(update={"artifact": None}), {})


def _save(loop: Any, loaded: Loaded, context: Context) -> Path:
    """Adapter or model as it will be committed, gathered from all ranks and written by the first."""
    import torch

    from finetune_trainer.model import adapters

    context.progress("saving", loop.state.global_step, loop.state.global_step)
    folder, network, dtype = context.scratch / "output", loop.model, torch.float32
    if context.run.training.method is Method.FULL:
        dtype = torch.bfloat16
        network.to(dtype)
    weights = sharding.gathered(loop, dtype, keep=distributed.is_first())
    if distributed.is_first():
        converted = {} if loaded.initial is None else {"path_initial_model_for_weight_conversion": str(loaded.initial)}
        network.save_pretrained(folder, state_dict=weights, **converted)
        if context.run.training.method is not Method.FULL:
            adapters.name_base(folder, context.run.model.uri, context.inputs.model()[0].revision)
        loaded.tokenizer.save_pretrained(folder)
    return folder


def _mean_of_last_tenth(losses: list[float]) -> float:
    last = losses[-max(1, math.ceil(len(losses) / 10)) :]
    return sum(last) / len(last)
