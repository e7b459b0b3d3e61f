"""One training run, whatever TRL's trainer it is: a bad loss stops it, every step is reported, a resumed run is the same.

Loop ─┬─ SupervisedLoop   supervised.py: SFT, and distillation on the same rows
      └─ …                preference.py: pairs of answers, by TRL's trainer of each objective
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.context import Context
from finetune_trainer.contract.pipeline import FIRST_ROW_LOSS
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Progress
from finetune_trainer.data.rendered import TRAIN
from finetune_trainer.data.tokenized import rows
from finetune_trainer.failures import StepFailed
from finetune_trainer.model import saved_modules
from finetune_trainer.model.compute import gpu_name, peak_memory
from finetune_trainer.speed.optimizers import clip_while_reading, wait_for_pages_only
from finetune_trainer.speed.recorded_layers import RecordedLayers


class Loop(Trainer):
    """What all objectives share. Each is a class of this and of TRL's trainer, in this order."""

    model: Any  # a PEFT model, or transformers' own
    args: Any
    maybe_activation_offload_context: Any = nullcontext()  # TRL's trainers put their own in its place
    recorded: RecordedLayers | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        told = self.model.config.get_text_config()
        if hasattr(told, "output_router_logits"):  # TRL switches it on for a share of the loss that is not taken here
            told.output_router_logits = False
        self.model.train()  # PEFT's wrapper says that it trains while the model inside it was loaded to evaluate
        if isinstance(self.model, PeftModel):
            # For adapters in 16 bits it would put float32 copies in their place: a resumed run's optimizer would change those,
            # and the fused path would go on computing with the others.
            self.model.load_adapter = partial(self.model.load_adapter, autocast_adapter_dtype=False)
        self._unchecked: list[torch.Tensor] = []  # losses of the micro-batches since the last step
        self._unread = torch.zeros(2)  # loss and gradient norm of the step at work

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """All steps. What is computed afterwards finds the memory of recorded layers free."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.recorded is not None:
                self.recorded.forget()

    def set_trained_type(self, dtype: torch.dtype) -> None:
        """Number type of the trained weights. TRL casts QLoRA's adapters to BF16 on any device; CPUs pay for that.

        DoRA's lengths stay in float32: they are near one, and in BF16 their small updates would round away. So do modules
        that are trained whole.
        """
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32 if "lora_magnitude_vector" in name else dtype)
        if hasattr(self.model, "get_base_model"):
            saved_modules.begin_in_float32(self.model)

    def set_warmup(self, ratio: float) -> None:
        """Share of the steps over which the rate rises, rounded down: few steps must not be spent at rate 0."""
        total: int = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        self.args.warmup_steps = int(ratio * total)

    def losses(self) -> dict[int, float]:
        """Training loss by step from the first on, those before a resume included."""
        return {int(entry["step"]): entry["loss"] for entry in self.state.log_history if "loss" in entry}

    def validation_loss(self) -> float | None:
        """Loss over the validation rows as the model is now; None without such rows."""
        if self.eval_dataset is None:
            return None
        return float(self.evaluate()["eval_loss"])

    def first_row(self, folder: Path) -> dict[str, str]:
        """Loss over the answer of the first row to train on as the model is now, to be found again where the weights are
        read back. Nothing where many ranks train, which would share the one row out.
        """
        first = rows(folder, TRAIN)
        if first is None or self.args.world_size > 1:
            return {}
        batch = {name: torch.tensor([first[0][name]]) for name in ("input_ids", "labels")}
        return {FIRST_ROW_LOSS: f"{self._plain_loss(batch):.8g}"}

    def _plain_loss(self, batch: dict[str, torch.Tensor]) -> float:
        """Mean negative log-likelihood of a batch's labels in nats, whatever the objective is."""
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            # Some mixtures of experts add a share for the balance between them.
            plain = {"output_router_logits": False} if hasattr(self.model.config, "output_router_logits") else {}
            loss = self.model(**self._prepare_inputs(batch), use_cache=False, **plain).loss
        self.model.train(was_training)
        return float(loss)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch forward and backward: the Trainer's own step without what makes a GPU wait for Python."""
        if not model.training:
            model.train()  # walks over thousands of modules
        inputs = self._prepare_inputs(inputs)
        with self.maybe_activation_offload_context, self.compute_loss_context_manager():
            loss: Any = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if self.loss_is_scaled_for_ga is False:  # a mean over rows, not over the tokens of the whole step
            loss = loss / self.current_gradient_accumulation_steps
        # DeepSpeed would divide by the micro-batches once more, and takes the step in here after the last of them.
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}))
        self._unchecked.append(loss.detach())
        return loss.detach()  # type: ignore[no-any-return]

    def forget_step(self) -> None:
        """Drop what a micro-batch left behind that no step will use."""
        self.model_wrapped.zero_grad()
        self._unchecked = []

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Tokens that are not padding. Concatenated rows come without a mask and have none; counting them asks no GPU.

        Each of many ranks reckons that the others had as many as it had itself, because to ask them it would have to wait
        for them.
        """
        mask = inputs.get("attention_mask")
        own = inputs["input_ids"].numel() if mask is None else int(mask.sum())
        self.state.num_input_tokens_seen += own * self.args.world_size

    def get_train_dataloader(self) -> Any:
        return workers_apart(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return workers_apart(super().get_eval_dataloader(eval_dataset))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint's weights. With DeepSpeed they are in the shares that the ranks write beside it."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nobody reads the Trainer's count, and it walks over all parameters at each step."""
        return 0

    def create_optimizer(self, model: Any = None) -> Any:
        made = super().create_optimizer(model)
        wait_for_pages_only(made)
        return made

    def _clip_grad_norm(self, model: Any) -> Any:
        """Called once a step, before `_get_grad_norm`."""
        alone = not (self.args.fp16 or self.is_fsdp_enabled or self.is_deepspeed_enabled)
        inner = getattr(self.optimizer, "optimizer", self.optimizer)  # within accelerate's
        norm = clip_while_reading(inner, model.parameters(), self.args.max_grad_norm) if alone else None
        return super()._clip_grad_norm(model) if norm is None else norm  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called once a step, before the optimizer. The step's loss and the norm stay on the device until it has its work."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        loss = torch.stack(self._unchecked).sum()
        self._unchecked = []
        whole = float(norm) if hasattr(norm, "full_tensor") else norm  # FSDP shares it out as it does the gradients
        self._unread = torch.stack([loss, torch.as_tensor(0.0 if whole is None else whole).to(loss)])
        return norm

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """Called once a step, after the optimizer: the one place where a step waits for the device, and before anything of it
        is saved.
        """
        loss, norm = self._unread.tolist()
        self._check_finite("loss", loss)
        if not self.args.fp16:  # FP16's loss scaler meets infinite gradients in its normal work
            self._check_finite("gradient norm", norm)
        if self.args.world_size > 1:  # the mean over the ranks is told
            return super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)
        tr_loss.zero_()
        told = None if grad_norm is None else norm
        return super()._maybe_log_save_evaluate(torch.tensor(loss), told, *args, **kwargs)

    def _check_finite(self, what: str, value: float) -> None:
        """Stop where the weights may be spoiled by it: nothing of this step is saved, and the last checkpoint stays good."""
        if not math.isfinite(value):
            raise StepFailed(
                StepReason.NonFiniteLoss,
                f"{what} {value} at step {self.state.global_step}: lower training.learningRate, raise warmupRatio, "
                "or set precision BF16 or FP32; the checkpoint before it is kept",
            )


def workers_apart(loader: Any) -> Any:
    """The same batches, by workers outside of this rank's process group. torchrun tells all of the group when a pod is to
    stop, and a worker that ends at once takes the rest of the step, and so the checkpoint, with it.
    """
    iterated = getattr(loader, "base_dataloader", loader)  # accelerate's wraps the one that starts the workers
    iterated.worker_init_fn = partial(_begin_apart, iterated.worker_init_fn)
    return loader


def _begin_apart(seed: Callable[[int], None] | None, worker: int) -> None:
    os.setpgid(0, 0)
    if seed is not None:
        seed(worker)


class ReportProgress(TrainerCallback):
    """One progress reading a step: loss, learning rate, non-padding tokens per second, memory, seconds to go."""

    def __init__(self, context: Context, loop: Loop) -> None:
        self._context, self._loop = context, loop
        self._started, self._first_step, self._first_tokens = 0.0, 0, 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started, self._first_step = time.monotonic(), state.global_step
        self._first_tokens = state.num_input_tokens_seen
        self._context.progress("training", state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        seconds = max(time.monotonic() - self._started, 1e-6)
        steps = max(state.global_step - self._first_step, 1)
        self._context.report(
            Progress(
                step_name=self._context.step.name,
                activity="training",
                step=state.global_step,
                total=state.max_steps,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                tokens_per_second=round((state.num_input_tokens_seen - self._first_tokens) / seconds, 1),
                memory_bytes=peak_memory(self._loop.args.device.type),
                gpu=gpu_name(self._loop.args.device.type),
                eta_seconds=round((state.max_steps - state.global_step) * seconds / steps, 1),
            )
        )
