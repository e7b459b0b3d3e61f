"""What a layer adds to the hidden states, and the RMSNorm that reads them next, in one sweep over memory.

    layer i      hidden ── + attention ── norm ── MLP ── + ──► layer i + 1
                           └─────────────┘             └── its first norm

A layer's forward is replaced where it is Llama's to the letter, and its norms are; so is the first norm of the layer behind it,
which finds its answer there. The sums' gradients come back through both at once. Norms must not train.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finetune_trainer.speed.kernels import on_gpu

WARPS = 8


class AddNorm(torch.autograd.Function):
    """x + more, and weight · (x + more) / rms(x + more); both like x, (…, width)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, more: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        both, out, scale = forward(x.contiguous(), more.contiguous(), weight, epsilon)
        ctx.save_for_backward(both, weight, scale)
        return both, out

    @staticmethod
    def backward(ctx: Any, of_sum: Tensor, given: Tensor) -> tuple[Any, ...]:
        gradient = backward(given.contiguous(), of_sum.contiguous(), *ctx.saved_tensors)
        return gradient, gradient, None, None


def forward(x: Tensor, more: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, its norm, and what the norm multiplied by: float32, one for each token."""
    if not on_gpu(x):
        both = x + more
        scale = torch.rsqrt(both.float().pow(2).mean(-1, keepdim=True) + epsilon)
        return both, weight * (both.float() * scale).to(x.dtype), scale
    from finetune_trainer.speed import add_norm_triton  # Triton is there on CUDA machines only

    both, out, scale = torch.empty_like(x), torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    width, rows = x.shape[-1], scale.numel()
    add_norm_triton.forward[(rows,)](x, more, weight, both, out, scale, width, epsilon, BLOCK=_block(width), num_warps=WARPS)
    return both, out, scale


def backward(given: Tensor, of_sum: Tensor, both: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The gradient of either summand, by those of the norm's answer and of the sum."""
    if not on_gpu(both):
        normed, through = both.float() * scale, given.float() * weight.float()
        through = (through - normed * (through * normed).mean(-1, keepdim=True)) * scale
        return (through + of_sum.float()).to(both.dtype)
    from finetune_trainer.speed import add_norm_triton

    out, width = torch.empty_like(both), both.shape[-1]
    given_all = (given, of_sum, both, weight, scale, out, width)
    add_norm_triton.backward[(scale.numel(),)](*given_all, BLOCK=_block(width), num_warps=WARPS)
    return out


# ── Putting it into layers ────────────────────────────────────────────────────────────────────────────────────────────


def join(layers: Sequence[nn.Module]) -> bool:
    """Let a model's layers add and norm at once, if all of them are as this module knows them. Returns whether they do."""
    if not layers or not all(_is_plain(layer) for layer in layers):
        return False
    waiting: list[tuple[Tensor, Tensor]] = []  # a layer's answer, and what the next one's first norm makes of it
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        layer.forward = partial(_layer, layer, following, waiting)
    return True


def _layer(layer: Any, following: Any, waiting: list[tuple[Tensor, Tensor]], hidden_states: Tensor, **told: Any) -> Tensor:
    """Llama's layer. What waits is not taken where another answer came between."""
    seen, normed = waiting.pop() if waiting else (None, None)
    if seen is not hidden_states:
        normed = layer.input_layernorm(hidden_states)
    attended, _ = layer.self_attn(hidden_states=normed, **told)
    hidden, normed = _added(hidden_states, attended, layer.post_attention_layernorm)
    answer = layer.mlp(normed)
    if following is None:
        return hidden + answer  # type: ignore[no-any-return]
    hidden, normed = _added(hidden, answer, following.input_layernorm)
    waiting.append((hidden, normed))
    return hidden


def _added(x: Tensor, more: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    both, out = AddNorm.apply(x, more, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
    return both, out


def _is_plain(layer: Any) -> bool:
    """Whether the layer's own forward, and its norms', are Llama's to the letter, and the norms do not train."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

    norms = [getattr(layer, name, None) for name in ("input_layernorm", "post_attention_layernorm")]
    if not all(norm is not None and _same(norm, LlamaRMSNorm) and not norm.weight.requires_grad for norm in norms):
        return False
    return "forward" not in vars(layer) and _same(layer, LlamaDecoderLayer)


def _same(module: nn.Module, known: type[nn.Module]) -> bool:
    """Whether two classes' forwards are of one text: transformers' families copy them from each other."""
    mine, theirs = (inspect.unwrap(kind.forward).__code__ for kind in (type(module), known))
    return all(getattr(mine, name) == getattr(theirs, name) for name in ("co_code", "co_names", "co_varnames"))


def _block(width: int) -> int:
    """The power of two that holds a row."""
    return 1 << (width - 1).bit_length()
