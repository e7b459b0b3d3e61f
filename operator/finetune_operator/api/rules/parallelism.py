"""CEL rules of spec.parallelism: ranks, how they share the work out, and what can't be shared out."""

from __future__ import annotations

from finetune_operator.meta import Rule

_RANKS = "self.parallelism.numNodes * (self.parallelism.gpusPerNode > 0 ? self.parallelism.gpusPerNode : 1)"

PARALLELISM_RULES = (
    Rule(
        "spec",
        f"self.training.globalBatchSize % ({_RANKS}"
        " * (has(self.training.microBatchSize) ? self.training.microBatchSize : 1)) == 0",
        "spec.training.globalBatchSize must be a multiple of numNodes x gpusPerNode x microBatchSize, so that each rank takes"
        " the same share; change it, or spec.parallelism",
    ),
    Rule(
        "spec",
        f"self.parallelism.strategy == 'Auto' || {_RANKS} > 1",
        "spec.parallelism.strategy is for several ranks; set it to Auto, or numNodes or gpusPerNode above 1",
    ),
    Rule(
        "spec",
        f"self.parallelism.launcher == 'Torchrun' || {_RANKS} > 1",
        "spec.parallelism.launcher Ray is for several ranks; leave it out, or set numNodes or gpusPerNode above 1",
    ),
    Rule(
        "spec",
        "self.parallelism.strategy != 'FSDP' || self.training.method != 'QLoRA' || self.parallelism.gpusPerNode > 0",
        "spec.parallelism.strategy FSDP shares out QLoRA's 4-bit weights on GPUs only; use DDP, or method LoRA",
    ),
    Rule(
        "spec",
        "self.training.quantization.bits == 4 || !(self.parallelism.strategy in ['FSDP', 'ZeRO3'])",
        "spec.parallelism.strategy can't share out 8-bit weights; use DDP or Auto, or spec.training.quantization.bits 4",
    ),
    Rule(
        "spec",
        "self.parallelism.strategy != 'ZeRO3' || self.training.method != 'QLoRA'",
        "spec.parallelism.strategy ZeRO3 can't share out QLoRA's quantized weights; use FSDP or ZeRO2, or method LoRA",
    ),
    Rule(
        "spec",
        "self.training.gradientCheckpointing != 'Selective' || self.parallelism.strategy != 'ZeRO3'"
        " || self.training.method == 'Full'",
        "spec.training.gradientCheckpointing Selective does not go with adapters under spec.parallelism.strategy ZeRO3; use"
        " Auto, or strategy FSDP",
    ),
    Rule(
        "spec",
        "self.parallelism.strategy in ['Auto', 'DDP'] || !self.training.optimizer.matches('bnb|8bit|4bit|paged')",
        "spec.training.optimizer: bitsandbytes' can't work on the shares of spec.parallelism.strategy; use Auto or"
        " adamw_torch_fused",
    ),
    Rule(
        "spec",
        "self.parallelism.numNodes == 1 || has(self.storage.artifacts.uri) || has(self.storage.artifacts.storageClassName)",
        "spec.parallelism.numNodes above 1 needs a store that several nodes reach; set spec.storage.artifacts.uri to s3:// or"
        " to a claim with ReadWriteMany, or storageClassName to a class that makes such claims",
    ),
    Rule(
        "spec",
        "self.training.objective == 'SFT' || self.parallelism.strategy in ['Auto', 'DDP']",
        "spec.parallelism.strategy can't share out weights for spec.training.objective DPO, ORPO, KTO or Distillation;"
        " use DDP or Auto",
    ),
)
