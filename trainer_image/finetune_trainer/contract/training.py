"""The settings of training: spec.training of a FineTuneJob, as the train pod reads it."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Literal

from pydantic import Field

from finetune_trainer.contract.adapters import Lora, Quantization
from finetune_trainer.contract.fields import MOST, SecretRef, Strict
from finetune_trainer.contract.objectives import OBJECTIVES, Distillation, Learning, Objective, Preference

HANG_AFTER_MEDIAN_STEPS = 30
EPOCHS = 3.0


class Method(StrEnum):
    QLORA = "QLoRA"
    LORA = "LoRA"
    FULL = "Full"


class Precision(StrEnum):
    AUTO = "Auto"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


Recomputing = Literal["Full", "Selective", "Off"]  # of each layer, in the backward pass


class Checkpoint(Strict):
    every_steps: int | None = Field(None, ge=1, le=MOST)
    """Save after this many optimizer steps. Unset: intervalSeconds decides."""
    interval_seconds: int = Field(600, ge=1, le=MOST)
    """Save when this many seconds have passed since the last save."""
    keep: int = Field(2, ge=1, le=100)
    """How many checkpoints stay in the artifact store while training runs."""


class EarlyStopping(Strict):
    patience: int = Field(3, ge=1, le=1000)
    """Training ends after this many validations in a row that were no better than the best one."""


# What each tracker must find in its environment; MLflow would write to the pod's own disk, W&B would ask for a key.
TRACKERS: dict[str, tuple[str, ...]] = {"tensorboard": (), "mlflow": ("MLFLOW_TRACKING_URI",), "wandb": ("WANDB_API_KEY",)}


class Training(Strict):
    method: Method = Method.QLORA
    """QLoRA: adapters over a quantized base; LoRA: adapters over the base as it is; Full: every weight."""
    objective: Objective = Objective.SFT
    """What is learned from a row. SFT: its answer. DPO, ORPO and KTO: to prefer the chosen answer to the rejected one, from
    rows of format Preference; KTO also from UnpairedPreference. Distillation: to predict the answer as a teacher does."""
    preference: Preference = Field(default_factory=cache(Preference))
    """Settings of DPO, ORPO and KTO; other objectives ignore them, which status.warnings says."""
    distillation: Distillation | None = None
    """The teacher of objective Distillation, and how much it counts."""
    precision: Precision = Precision.AUTO
    """Compute type. Auto: BF16 on GPUs that have it, FP16 on older ones, FP32 on CPUs."""
    lora: Lora = Field(default_factory=cache(Lora))
    """Adapter settings of QLoRA and LoRA; Full ignores them, which status.warnings says."""
    quantization: Quantization = Field(default_factory=cache(Quantization))
    """How QLoRA stores the base model's weights while it trains adapters over them."""
    epochs: float | None = Field(None, gt=0, le=1000)
    """Passes over the training rows. Unset and no maxSteps: 3."""
    max_steps: int | None = Field(None, ge=1, le=MOST)
    """Optimizer steps in all; takes the place of epochs."""
    global_batch_size: int = Field(16, ge=1, le=65536)
    """Rows per optimizer step, over all devices and accumulation steps."""
    micro_batch_size: int | None = Field(None, ge=1, le=4096)
    """Rows per forward pass on one device. Unset: the memory estimate decides; status.resolved shows it."""
    learning_rate: float | None = Field(None, gt=0, le=1)
    """Peak learning rate. Unset: 2e-4 for QLoRA and LoRA, 2e-5 for Full; a twentieth of that for DPO, ORPO and KTO."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"] = "cosine"
    """Learning-rate schedule, by the name that transformers gives it. inverse_sqrt needs a warm-up: the longer that was, the
    slower the rate falls."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises to its peak."""
    weight_decay: float = Field(0, ge=0, le=1)
    """AdamW's weight decay."""
    optimizer: str = Field("Auto", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_]+$")
    """Optimizer by the name that transformers gives it: adamw_torch, adamw_torch_fused, adamw_bnb_8bit, paged_adamw_8bit, …
    Auto: adamw_torch_fused for adapters, adamw_bnb_8bit for Full on GPUs, adamw_torch on CPUs."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_length: int = Field(2048, ge=8, le=1048576)
    """Longest row in tokens, prompt and completion together."""
    packing: bool = False
    """Fill rows of maxLength tokens with several short ones, without attention between them. globalBatchSize then counts
    packed rows. On CPUs choose maxLength no longer than the rows need: a packed row costs attention over all of it."""
    gradient_checkpointing: Literal["Auto", "Full", "Selective", "Off"] = "Auto"
    """Recompute activations in the backward pass to save memory. Full: each layer's; Selective: all but matrix products and
    attention, which take the time, or where adapters are fused with their layers an MLP's inner products alone; Auto: only
    where the memory estimate asks for it."""
    completion_only_loss: bool = True
    """Loss on the completion's tokens only, not on the prompt's."""
    seed: int = Field(42, ge=0, le=2**31 - 1)
    """Seed of weights, order and dropout."""
    evaluate_every_steps: int | None = Field(None, ge=1, le=MOST)
    """Measure the validation loss after this many steps. Needs dataset.validation. Unset: at the end only."""
    early_stopping: EarlyStopping | None = None
    """End training once the validation loss falls no more. Needs evaluateEverySteps. Unset: train all steps."""
    keep_checkpoint: Literal["Best", "Last"] = "Last"
    """Which weights the job goes on with. Last: those after the last step. Best: those of the validation with the lowest
    loss, which needs evaluateEverySteps."""
    neftune_noise_alpha: float | None = Field(None, gt=0, le=100)
    """Strength of the noise on the embeddings in training (NEFTune); 5 is usual. Unset: none."""
    checkpoint: Checkpoint = Field(default_factory=cache(Checkpoint))
    """When training state is saved, so that a lost pod costs little."""
    report_to: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(default_factory=list, max_length=3)
    """Where loss, learning rate and gradient norm of each step go beside the pod's log. tensorboard: files in a folder of that
    name beside the adapter. mlflow, wandb: the server that reportSecretRef says; the image must have the package."""
    report_secret_ref: SecretRef | None = None
    """Secret whose keys become variables of the training process: MLFLOW_TRACKING_URI and MLflow's other ones, WANDB_API_KEY
    and W&B's."""

    @property
    def passes(self) -> float:
        """Epochs, where maxSteps doesn't say how long to train."""
        return self.epochs or EPOCHS

    @property
    def peak_rate(self) -> float:
        """The learning rate that is asked for, else the customary one."""
        customary = self.learning.full_rate if self.method is Method.FULL else self.learning.rate
        return self.learning_rate or customary

    @property
    def in_fp8(self) -> bool:
        """Whether frozen weights are multiplied in FP8."""
        return self.quantization.products == "FP8"

    @property
    def suits_fp8(self) -> bool:
        """Whether its settings leave all to the path that can do so."""
        plain = self.lora.dropout == 0 and not self.lora.dora and self.objective is Objective.SFT
        return plain and self.precision in (Precision.AUTO, Precision.BF16)

    @property
    def learning(self) -> Learning:
        """What its objective asks for."""
        return OBJECTIVES[self.objective]
