"""Attention over packed rows without padding and without contamination, as each layer asks for it.

where         plain, or with a sliding window                soft caps and sinks
Hopper        cuDNN's (cudnn_attention.py), else as below    transformers' flex attention
other GPUs    torch's variable-length flash attention        transformers' flex attention
CPUs          one product under a mask: what the others compute

`cu_seq_lens_q` (int32, one entry per document and one for the end) comes from TRL's padding-free collator, so that a
document never attends to its neighbour. Whether a model asks for more than this, or for something else than attention, is
seen in a pass through its outline: then its rows are padded, and transformers computes its attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from finetune_trainer.model.outline import TOKENS, outline, pass_through
from finetune_trainer.speed import cudnn_attention

PACKED, WITNESS = "finetune_packed", "finetune_witness"  # names to give as attn_implementation
WIDEST_HEAD = 256  # of flash attention
# What a layer may ask of its attention that changes the answer, in transformers' words; and what is here of it.
CHANGES = frozenset({"softcap", "s_aux", "position_bias", "dropout", "indices", "block_indices"})
KNOWN = frozenset({"softcap", "s_aux"})


@dataclass(frozen=True)
class Asked:
    """What the layers of a model ask of their attention: names out of CHANGES, and the widest head."""

    names: frozenset[str]
    head: int


@dataclass(frozen=True)
class Rows:
    """The documents on one line: where they end, the longest one's tokens, and how many of its tokens each of them sees."""

    ends: Tensor
    longest: int
    window: int | None

    def sees(self, tokens: int) -> Callable[[Any, Any], Any]:
        """Whether a token at one place sees the one at another, both as indexes or tensors of them."""
        document = torch.bucketize(torch.arange(tokens, device=self.ends.device), self.ends[1:], right=True)
        reach = self.window or tokens
        return lambda here, there: (document[here] == document[there]) & (here >= there) & (here - there < reach)


Kernel = Callable[[nn.Module, Tensor, Tensor, Tensor, Rows, float | None, dict[str, Any]], Tensor]


# ── What a model asks for ─────────────────────────────────────────────────────────────────────────────────────────────


def implementation(folder: Path, *, on_gpu: bool) -> str | None:
    """Name for `attn_implementation` by which rows of this model may share a line of tokens; None where they can't."""
    asked = asked_by(folder)
    if asked is None or asked.names - KNOWN or (on_gpu and asked.head > WIDEST_HEAD):
        return None
    return register(by_gpu if on_gpu else by_mask)


@lru_cache
def asked_by(folder: Path) -> Asked | None:
    """None where not each layer is attention that is told where rows end: a convolution or a recurrence is not."""
    from transformers import AttentionInterface

    names: set[str] = set()
    heads: list[int] = []
    told: list[bool] = []

    def witness(_: nn.Module, query: Tensor, __: Tensor, value: Tensor, ___: Any, **asked: Any) -> tuple[Tensor, None]:
        names.update(_changes(asked))
        heads.append(query.shape[-1])
        told.append("cu_seq_lens_q" in asked)
        batch, count, tokens = query.shape[:3]
        return query.new_empty(batch, tokens, count, value.shape[-1]), None

    AttentionInterface.register(WITNESS, witness)
    try:
        network = outline(folder, WITNESS)
        with torch.no_grad():
            pass_through(network, cu_seq_lens_q=torch.tensor([0, TOKENS], dtype=torch.int32))
    except (RuntimeError, KeyError, NotImplementedError):  # its way depends on numbers, or it knows no other attention
        return None
    # Masks of other shapes than documents and windows (chunks) are in no argument; such classes take no flash attention.
    apart = network._supports_flash_attn and all(told) and len(told) == network.config.get_text_config().num_hidden_layers
    return Asked(frozenset(names), max(heads)) if apart else None


def _changes(asked: dict[str, Any]) -> set[str]:
    """Names out of CHANGES that a layer asks for."""
    return {name for name in CHANGES & asked.keys() if asked[name] is not None and not (name == "dropout" and not asked[name])}


# ── What computes it ──────────────────────────────────────────────────────────────────────────────────────────────────


def register(kernel: Kernel) -> str:
    """Make attention over packed rows known to transformers, computed by `kernel`; returns its name.

    No function for masks goes with it: transformers then makes none. Where there is one, it reads from the GPU whether rows are
    packed, and waits there once a micro-step until all work is done.
    """
    from transformers import AttentionInterface

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG001 - the documents' ends and the window say all
        scaling: float | None = None,
        sliding_window: int | None = None,
        cu_seq_lens_q: Tensor | None = None,
        max_length_q: int | None = None,
        **asked: Any,
    ) -> tuple[Tensor, None]:
        """query (batch, heads, tokens, dim), key and value with their own heads, to (batch, tokens, heads, dim of value).

        All is computed in value's type: under autocast, rotations that are not Liger's leave query and key in float32.
        Raises ValueError for what no kernel here has a word for, rather than leave it out.
        """
        changes = {name: asked[name] for name in _changes(asked)}
        if changes.keys() - KNOWN:
            raise ValueError(f"attention over packed rows has no {', '.join(sorted(changes.keys() - KNOWN))}")
        batch, heads, tokens, dim = query.shape
        wide = value.shape[-1]
        if cu_seq_lens_q is None:
            cu_seq_lens_q = torch.arange(0, (batch + 1) * tokens, tokens, dtype=torch.int32, device=query.device)
            max_length_q = tokens
        if wide < dim:  # latent attention's; kernels want one size for all
            value = nn.functional.pad(value, (0, dim - wide))
        q, k, v = (t.to(value.dtype).transpose(1, 2).reshape(batch * tokens, -1, dim) for t in (query, key, value))
        assert max_length_q is not None
        out = kernel(module, q, k, v, Rows(cu_seq_lens_q, max_length_q, sliding_window), scaling, changes)
        return out.view(batch, tokens, heads, dim)[..., :wide], None

    AttentionInterface.register(PACKED, attend)
    return PACKED


def by_gpu(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float | None, changes: dict[str, Any]
) -> Tensor:
    """Attention by cuDNN or flash attention, which need CUDA and bf16 or fp16, and by flex attention where a layer asks for
    more."""
    if changes:
        return _flex(module, q, k, v, rows, scale, changes)
    if cudnn_attention.available():
        found = cudnn_attention.attend(q, k, v, rows.ends, rows.longest, rows.window, scale)
        if found is not None:
            return found
    from torch.nn.attention.varlen import varlen_attn

    ends = (rows.ends, rows.ends, rows.longest, rows.longest)
    # A window of w tokens holds the token itself and w - 1 before it.
    window = (-1 if rows.window is None else rows.window - 1, 0)
    options: dict[str, Any] = {"scale": scale, "window_size": window}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # before torch 2.12 grouped heads need no leave
        options["enable_gqa"] = True
    out: Any = varlen_attn(q, k, v, *ends, **options)
    return out  # type: ignore[no-any-return]


def by_mask(_: nn.Module, q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float | None, changes: dict[str, Any]) -> Tensor:
    """Attention by one product of all tokens with all, which is what packed rows cost where there is no kernel for them."""
    here = torch.arange(len(q), device=q.device)
    seen = rows.sees(len(q))(here[:, None], here[None, :])
    queries, keys, values = (t.transpose(0, 1)[None] for t in (q, k, v))
    if not changes:
        out = nn.functional.scaled_dot_product_attention(queries, keys, values, seen, scale=scale, enable_gqa=True)
        return out[0].transpose(0, 1)
    keys, values = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (keys, values))
    scores = queries @ keys.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if (cap := changes.get("softcap")) is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    if (sinks := changes.get("s_aux")) is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=-1)
    shares = scores.softmax(-1)[..., : len(q)]
    return (shares @ values)[0].transpose(0, 1)


_masks: Any = WeakTensorKeyDictionary()  # of a line of rows, by window: made once for all layers


def _flex(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float | None, changes: dict[str, Any]
) -> Tensor:
    from torch.nn.attention.flex_attention import create_block_mask
    from transformers.integrations.flex_attention import flex_attention_forward

    made = _masks.setdefault(rows.ends, {})
    if rows.window not in made:
        sees = rows.sees(len(q))
        made[rows.window] = create_block_mask(
            lambda _, __, here, there: sees(here, there), None, None, len(q), len(q), device=q.device
        )
    queries, keys, values = (t.transpose(0, 1)[None] for t in (q, k, v))
    out, _ = flex_attention_forward(module, queries, keys, values, made[rows.window], scaling=scale, **changes)
    return out[0]
