"""Adapters, and how the base model below them is stored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_trainer.contract.fields import Filled, Strict

SPLIT_INITS = ("PiSSA", "OLoRA")  # the adapter begins as a part of the weights


class Lora(Strict):
    rank: int = Field(16, ge=1, le=1024)
    """Rank r of the adapter's matrices."""
    alpha: float = Field(32, gt=0)
    """Scale: the adapter's output is multiplied by alpha / rank."""
    rank_stabilized: bool = False
    """Multiply by alpha / √rank instead, so that a high rank learns as fast as a low one (rsLoRA)."""
    dora: bool = False
    """Train the length of each weight's rows beside the adapter (DoRA): often better at low ranks, slower, more memory."""
    dropout: float = Field(0, ge=0, lt=1)
    """Dropout before the adapter. 0 is fastest and, on short runs, as good."""
    targets: list[Filled] = Field(default_factory=lambda: ["all-linear"], min_length=1, max_length=64)
    """Modules that get an adapter: all-linear, or names such as q_proj."""
    modules_to_save: list[Filled] = Field(default_factory=list, max_length=16)
    """Modules that are trained whole, in float32, beside the adapters, by names such as embed_tokens and lm_head: for new
    special tokens, or a new chat format. Where a model ties these two, either names both. Not for method Full."""
    init: Literal["Default", "Gaussian", "Orthogonal", "PiSSA", "OLoRA"] = "Default"
    """How the adapter begins; training starts from the base model whichever it is. Default (uniform, after Kaiming) and
    Gaussian are of its first matrix, and the second begins at zero. Orthogonal: both begin with values, and their rows and
    columns are orthogonal, so that the product is zero and both learn from the first step; it needs an even rank. PiSSA and
    OLoRA, for method LoRA: it begins as a part of the weights; saved is an adapter of twice the rank."""

    @property
    def saved_rank(self) -> int:
        """The rank of the adapter that is saved."""
        return 2 * self.rank if self.init in SPLIT_INITS else self.rank


class Quantization(Strict):
    bits: Literal[4, 8] = 4
    """4: values of the type below, with a scale for each block of 64 weights. 8: LLM.int8, a scale for each row of a weight:
    nearer to the base model, for twice the memory of its weights."""
    type: Literal["NF4", "FP4"] = "NF4"
    """What 4 bits stand for. NF4: values that suit normally distributed weights. FP4: floating-point numbers, which come less
    near to the base model."""
    double_quantization: bool = True
    """Round the scales of 4-bit blocks to 8 bits, so that a weight takes 4.1 bits instead of 4.5."""
    products: Literal["Compute", "FP8"] = "Compute"
    """What training multiplies these weights in. Compute: the compute type. FP8: 8-bit floating point on GPUs that have it
    (from Ada and Hopper on), for objective SFT: faster, and each product errs by 4 %, where NF4 itself errs by 9 %.
    Validation, merge and all that is made of the model see the same weights either way."""


NF4 = Quantization()
"""The quantization of QLoRA's paper."""
