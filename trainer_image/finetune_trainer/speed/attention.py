"""Attention over packed rows without padding and without contamination: torch's own variable-length flash attention.

`cu_seq_lens_q` (int32, one entry per document and one for the end) comes from TRL's padding-free collator, so that a
document never attends to its neighbour and no T x T mask is built. It needs nothing beyond torch.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

VARLEN = "finetune_varlen"  # the name to give as attn_implementation


def register_varlen() -> str:
    """Make varlen attention known to transformers; returns its name. Needs CUDA and bf16 or fp16 when it is called."""
    from torch.nn.attention.varlen import varlen_attn
    from transformers import AttentionInterface, AttentionMaskInterface

    options: dict[str, Any] = {"window_size": (-1, 0)}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # before torch 2.12 grouped heads need no leave
        options["enable_gqa"] = True

    def attend(
        module: nn.Module,  # noqa: ARG001 - transformers passes it
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG001 - the documents' ends say all
        scaling: float | None = None,
        cu_seq_lens_q: Tensor | None = None,
        max_length_q: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """query (batch, heads, tokens, dim), key and value with their own heads, to (batch, tokens, heads, dim).

        All is computed in value's type: under autocast, rotations that are not Liger's leave query and key in float32.
        """
        batch, heads, tokens, dim = query.shape
        if cu_seq_lens_q is None:
            cu_seq_lens_q = torch.arange(0, (batch + 1) * tokens, tokens, dtype=torch.int32, device=query.device)
            max_length_q = tokens
        q, k, v = (t.to(value.dtype).transpose(1, 2).reshape(batch * tokens, -1, dim) for t in (query, key, value))
        assert max_length_q is not None
        ends = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        out: Any = varlen_attn(q, k, v, *ends, scale=scaling, **options)
        return out.view(batch, tokens, heads, dim), None

    AttentionInterface.register(VARLEN, attend)
    AttentionMaskInterface.register(VARLEN, lambda *_, **__: None)
    return VARLEN
