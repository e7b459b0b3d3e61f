"""What goes together in training: one table, which all that accept or refuse a run read.

    the CRD's rules (CEL) ─► operator's admission ─► prepare ─► choice of a strategy by Auto ─► train

Each row says the same thing twice: `allows` to Python and `must` to the API server. tests/unit/trainer/contract walks both over
all values that a row looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_trainer.contract.adapters import NF4, SPLIT_INITS
from finetune_trainer.contract.devices import SHARES_WEIGHTS, Devices, Launcher, Strategy
from finetune_trainer.contract.objectives import LEAST_OF_KTO, OF_PAIRS, WITH_REFERENCE, Objective, Preference
from finetune_trainer.contract.training import TRACKERS, Method, Precision, Training

WHOLE = (Strategy.AUTO, Strategy.DDP)  # each rank has all of the model; Auto may choose so
AUTO_TRIES = (Strategy.DDP, Strategy.FSDP)  # in this order: DDP is faster
OF_BITSANDBYTES = ("bnb", "8bit", "4bit", "paged")  # in names of optimizers


@dataclass(frozen=True)
class Combination:
    """One rule. `must` is CEL, in which `self` is the value at `at` of a FineTuneJob."""

    at: str
    allows: Callable[[Training, Devices], bool]
    must: str
    sentence: str  # names the field and says what to write instead


def refusals(training: Training, devices: Devices) -> tuple[str, ...]:
    """A sentence for each rule that is broken; Auto is refused only where each strategy that it may choose is."""
    said = [_broken(training, devices, strategy) for strategy in _offered(devices)]
    return () if () in said else said[0]


def strategies(training: Training, devices: Devices) -> tuple[Strategy, ...]:
    """What may be tried, in this order; none where `refusals` says why."""
    return tuple(strategy for strategy in _offered(devices) if not _broken(training, devices, strategy))


def selective_goes(method: Method, strategy: Strategy) -> bool:
    """Whether gradientCheckpointing may be Selective: TRL can't have it with adapters in ZeRO's stage 3."""
    return strategy is not Strategy.ZERO3 or method is Method.FULL


def _offered(devices: Devices) -> tuple[Strategy, ...]:
    chooses = devices.strategy is Strategy.AUTO and devices.world_size > 1
    return AUTO_TRIES if chooses else (devices.strategy,)


def _broken(training: Training, devices: Devices, strategy: Strategy) -> tuple[str, ...]:
    chosen = devices.model_copy(update={"strategy": strategy})
    return tuple(row.sentence for row in TABLE if not row.allows(training, chosen))


# ── The table ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_SPLIT = "self.training.lora.init in ['PiSSA', 'OLoRA']"
_NONE_SAVED = "!has(self.training.lora.modulesToSave) || self.training.lora.modulesToSave.size() == 0"
_Q = "self.training.quantization"
_NF4 = f"{_Q}.type == 'NF4' && {_Q}.doubleQuantization && {_Q}.products == 'Compute'"
_RANKS = "self.parallelism.numNodes * (self.parallelism.gpusPerNode > 0 ? self.parallelism.gpusPerNode : 1)"
_WHOLE = "self.parallelism.strategy in ['Auto', 'DDP']"

SETTINGS = (
    Combination(
        "spec.training",
        lambda training, _: training.epochs is None or training.max_steps is None,
        "!(has(self.epochs) && has(self.maxSteps))",
        "spec.training takes epochs or maxSteps, not both; remove one of them",
    ),
    Combination(
        "spec.training",
        lambda training, _: training.global_batch_size % (training.micro_batch_size or 1) == 0,
        "!has(self.microBatchSize) || self.globalBatchSize % self.microBatchSize == 0",
        "spec.training.globalBatchSize must be a multiple of microBatchSize; change one, or leave microBatchSize out",
    ),
    Combination(
        "spec.training",
        lambda training, _: not any(TRACKERS[name] for name in training.report_to) or training.report_secret_ref is not None,
        "!has(self.reportTo) || !self.reportTo.exists(name, name != 'tensorboard') || has(self.reportSecretRef)",
        "spec.training.reportTo mlflow and wandb need a server and a key; set reportSecretRef to a Secret with"
        " MLFLOW_TRACKING_URI or WANDB_API_KEY",
    ),
    Combination(
        "spec.training",
        lambda training, _: training.early_stopping is None or training.evaluate_every_steps is not None,
        "!has(self.earlyStopping) || has(self.evaluateEverySteps)",
        "spec.training.earlyStopping needs validations to judge by; set evaluateEverySteps and spec.dataset.validation",
    ),
    Combination(
        "spec",
        lambda training, _: training.keep_checkpoint != "Best" or training.evaluate_every_steps is not None,
        "self.training.keepCheckpoint != 'Best' || has(self.training.evaluateEverySteps)",
        "spec.training.keepCheckpoint Best needs validations to judge by; set evaluateEverySteps and spec.dataset.validation",
    ),
    Combination(
        "spec",
        lambda training, devices: training.precision is not Precision.FP16 or devices.gpus > 0,
        "self.training.precision != 'FP16' || self.parallelism.gpusPerNode > 0",
        "spec.training.precision FP16 needs a GPU; use Auto or FP32 where spec.parallelism.gpusPerNode is 0",
    ),
    Combination(
        "spec",
        lambda training, _: training.lora.init != "Orthogonal" or training.lora.rank % 2 == 0,
        "self.training.lora.init != 'Orthogonal' || self.training.lora.rank % 2 == 0",
        "spec.training.lora.init Orthogonal needs an even rank; change spec.training.lora.rank, or init",
    ),
    Combination(  # what is left of quantized weights, quantized anew, is another base
        "spec",
        lambda training, _: training.lora.init not in SPLIT_INITS or training.method is not Method.QLORA,
        f"!({_SPLIT}) || self.training.method != 'QLoRA'",
        "spec.training.lora.init PiSSA and OLoRA split the weights as they are; set method to LoRA, or choose another init",
    ),
    Combination(
        "spec",
        lambda training, devices: (
            training.lora.init not in SPLIT_INITS
            or (
                not (training.lora.dora or training.lora.modules_to_save)
                and devices.strategy in WHOLE
                and training.objective not in WITH_REFERENCE
            )
        ),
        f"!({_SPLIT}) || !self.training.lora.dora && ({_NONE_SAVED})"
        f" && {_WHOLE} && !(self.training.objective in ['DPO', 'KTO'])",
        "spec.training.lora.init PiSSA and OLoRA go with neither dora, modulesToSave, strategy FSDP nor objectives DPO and KTO;"
        " choose another init",
    ),
    Combination(
        "spec",
        lambda training, _: training.method is not Method.FULL or not training.lora.modules_to_save,
        f"self.training.method != 'Full' || {_NONE_SAVED}",
        "spec.training.lora.modulesToSave is for methods QLoRA and LoRA, as Full trains every weight; remove it",
    ),
    Combination(
        "spec",
        lambda training, _: not set(training.lora.modules_to_save) & set(training.lora.targets),
        f"{_NONE_SAVED} || !self.training.lora.modulesToSave.exists(name, name in self.training.lora.targets)",
        "spec.training.lora.targets and modulesToSave name the same module; name it in one of the two",
    ),
    Combination(  # FSDP shares out weights of one number type only
        "spec",
        lambda training, devices: not training.lora.modules_to_save or devices.strategy in WHOLE,
        f"{_NONE_SAVED} || {_WHOLE}",
        "spec.parallelism.strategy can't share out spec.training.lora.modulesToSave; use DDP or Auto, or remove those",
    ),
    Combination(
        "spec",
        lambda training, _: training.method is Method.QLORA or training.quantization == NF4,
        f"self.training.method == 'QLoRA' || (self.training.quantization.bits == 4 && {_NF4})",
        "spec.training.quantization is for method QLoRA; set method to QLoRA, or remove it",
    ),
    Combination(
        "spec",
        lambda training, _: training.quantization.bits == 4 or training.quantization == NF4.model_copy(update={"bits": 8}),
        f"self.training.quantization.bits == 4 || ({_NF4})",
        "spec.training.quantization.type, doubleQuantization and products are for 4-bit weights; set bits to 4, or remove them",
    ),
    Combination(  # all else keeps PEFT's code, or was never measured
        "spec",
        lambda training, devices: (
            not training.in_fp8 or (training.suits_fp8 and devices.gpus > 0 and devices.strategy not in SHARES_WEIGHTS)
        ),
        f"{_Q}.products != 'FP8' || self.parallelism.gpusPerNode > 0 && !(self.parallelism.strategy in ['FSDP', 'ZeRO3'])"
        " && self.training.precision in ['Auto', 'BF16'] && self.training.objective == 'SFT'"
        " && self.training.lora.dropout == 0.0 && !self.training.lora.dora",
        "spec.training.quantization.products FP8 needs GPUs and BF16, and goes with neither lora.dropout, lora.dora, another"
        " objective than SFT nor strategy FSDP; change these, or set products to Compute",
    ),
)

OBJECTIVES = (
    Combination(
        "spec",
        lambda training, _: (
            training.objective not in OF_PAIRS
            or not (training.packing or training.neftune_noise_alpha or not training.completion_only_loss)
        ),
        "self.training.objective in ['SFT', 'Distillation']"
        " || !(self.training.packing || has(self.training.neftuneNoiseAlpha) || !self.training.completionOnlyLoss)",
        "spec.training.packing, neftuneNoiseAlpha and completionOnlyLoss: false are for objective SFT; remove them, or set"
        " objective to SFT",
    ),
    Combination(
        "spec",
        lambda training, _: (training.objective is Objective.DISTILLATION) == (training.distillation is not None),
        "(self.training.objective == 'Distillation') == has(self.training.distillation)",
        "spec.training.distillation names the teacher of objective Distillation; set both, or neither",
    ),
    Combination(
        "spec",
        lambda training, _: (
            training.objective is Objective.KTO or training.preference == Preference(beta=training.preference.beta)
        ),
        "self.training.objective == 'KTO' || (self.training.preference.desirableWeight == 1.0"
        " && self.training.preference.undesirableWeight == 1.0)",
        "spec.training.preference.desirableWeight and .undesirableWeight are for objective KTO; remove them, or set objective"
        " to KTO",
    ),
    Combination(
        "spec",
        lambda training, devices: (
            training.objective is not Objective.KTO
            or (
                (training.micro_batch_size or LEAST_OF_KTO) >= LEAST_OF_KTO
                and training.global_batch_size >= LEAST_OF_KTO * devices.world_size
            )
        ),
        "self.training.objective != 'KTO' || ((!has(self.training.microBatchSize) || self.training.microBatchSize > 1)"
        f" && self.training.globalBatchSize >= {LEAST_OF_KTO} * {_RANKS})",
        "spec.training.objective KTO compares the rows of a micro-batch; make microBatchSize 2 or more, and globalBatchSize 2"
        " or more for each rank",
    ),
)

RANKS = (
    Combination(
        "spec",
        lambda training, devices: training.global_batch_size % (devices.world_size * (training.micro_batch_size or 1)) == 0,
        f"self.training.globalBatchSize % ({_RANKS}"
        " * (has(self.training.microBatchSize) ? self.training.microBatchSize : 1)) == 0",
        "spec.training.globalBatchSize must be a multiple of numNodes x gpusPerNode x microBatchSize, so that each rank takes"
        " the same share; change it, or spec.parallelism",
    ),
    Combination(
        "spec",
        lambda _, devices: devices.strategy is Strategy.AUTO or devices.world_size > 1,
        f"self.parallelism.strategy == 'Auto' || {_RANKS} > 1",
        "spec.parallelism.strategy is for several ranks; set it to Auto, or numNodes or gpusPerNode above 1",
    ),
    Combination(
        "spec",
        lambda _, devices: devices.launcher is Launcher.TORCHRUN or devices.world_size > 1,
        f"self.parallelism.launcher == 'Torchrun' || {_RANKS} > 1",
        "spec.parallelism.launcher Ray is for several ranks; leave it out, or set numNodes or gpusPerNode above 1",
    ),
    Combination(
        "spec",
        lambda training, devices: (
            devices.strategy is not Strategy.FSDP or training.method is not Method.QLORA or devices.gpus > 0
        ),
        "self.parallelism.strategy != 'FSDP' || self.training.method != 'QLoRA' || self.parallelism.gpusPerNode > 0",
        "spec.parallelism.strategy FSDP shares out QLoRA's 4-bit weights on GPUs only; use DDP, or method LoRA",
    ),
    Combination(
        "spec",
        lambda training, devices: training.quantization.bits == 4 or devices.strategy not in SHARES_WEIGHTS,
        "self.training.quantization.bits == 4 || !(self.parallelism.strategy in ['FSDP', 'ZeRO3'])",
        "spec.parallelism.strategy can't share out 8-bit weights; use DDP or Auto, or spec.training.quantization.bits 4",
    ),
    Combination(
        "spec",
        lambda training, devices: devices.strategy is not Strategy.ZERO3 or training.method is not Method.QLORA,
        "self.parallelism.strategy != 'ZeRO3' || self.training.method != 'QLoRA'",
        "spec.parallelism.strategy ZeRO3 can't share out QLoRA's quantized weights; use FSDP or ZeRO2, or method LoRA",
    ),
    Combination(
        "spec",
        lambda training, devices: (
            training.gradient_checkpointing != "Selective" or selective_goes(training.method, devices.strategy)
        ),
        "self.training.gradientCheckpointing != 'Selective' || self.parallelism.strategy != 'ZeRO3'"
        " || self.training.method == 'Full'",
        "spec.training.gradientCheckpointing Selective does not go with adapters under spec.parallelism.strategy ZeRO3; use"
        " Auto, or strategy FSDP",
    ),
    Combination(
        "spec",
        lambda training, devices: devices.strategy in WHOLE or not any(word in training.optimizer for word in OF_BITSANDBYTES),
        f"{_WHOLE} || !self.training.optimizer.matches('{'|'.join(OF_BITSANDBYTES)}')",
        "spec.training.optimizer: bitsandbytes' can't work on the shares of spec.parallelism.strategy; use Auto or"
        " adamw_torch_fused",
    ),
)

WHOLE_MODELS = (
    Combination(
        "spec",
        lambda training, devices: training.objective is Objective.SFT or devices.strategy in WHOLE,
        f"self.training.objective == 'SFT' || {_WHOLE}",
        "spec.parallelism.strategy can't share out weights for spec.training.objective DPO, ORPO, KTO or Distillation;"
        " use DDP or Auto",
    ),
    Combination(
        "spec",
        lambda training, devices: training.keep_checkpoint == "Last" or devices.strategy in WHOLE,
        f"self.training.keepCheckpoint == 'Last' || {_WHOLE}",
        "spec.training.keepCheckpoint Best needs all of the model on each rank; set it to Last, or spec.parallelism.strategy to"
        " DDP or Auto",
    ),
)

TABLE = (*SETTINGS, *OBJECTIVES, *RANKS, *WHOLE_MODELS)
