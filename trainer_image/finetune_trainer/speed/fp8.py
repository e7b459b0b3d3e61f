"""Products with frozen 4-bit weights in FP8 (e4m3), for a training's passes alone: Hopper multiplies it twice as fast as BF16.

    x ── each row by its largest number ──► FP8 ──┐
                                                  ├── summed in float32 ──► x Wᵀ in x's type
    W ── in 4 bits, all by one number ────► FP8 ──┘

Backward the gradients of all outputs that were computed from one input lie side by side, and so do their weights, the other way
round: the gradient of that input is one product. Weights are expanded anew for each product, as in BF16, and thrown away. One
scale does for all of a weight, as FP8 numbers have four significant bits over fifteen powers of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.speed import swiglu as plain_swiglu
from finetune_trainer.speed.kernels import on_gpu

E4M3, LARGEST = torch.float8_e4m3fn, 448.0
MULTIPLE = 16  # of which a product's widths must be
BLOCK, WARPS, GATED_WARPS = 8192, 8, 16  # numbers of a row that a Triton program takes at once, and by how many warps
TILE, TURNING_WARPS = 64, 2  # rows and columns that are turned round at once
EXPANDED_BLOCK, EXPANDED_WARPS = 1024, 2  # bytes of 4-bit numbers


@dataclass(frozen=True)
class Rows:
    """A matrix (n, k) in FP8. A row's numbers are multiples of its scale, of (n, 1); `dtype` is what it was made of."""

    values: Tensor
    scales: Tensor
    dtype: torch.dtype


@dataclass(frozen=True)
class Frozen:
    """A 4-bit weight (out, in) that is multiplied in FP8."""

    packed: Tensor
    absmax: Tensor  # float32, one for each block of its numbers
    code: Tensor  # float32: what its 16 kinds of numbers stand for, in units of the scale
    scales: Tensor  # float32 (1, the wider of both): the scale, again and again
    shape: tuple[int, int]
    block: int

    def expanded(self) -> Tensor:
        """(out, in) in FP8."""
        if not on_gpu(self.packed):
            both = torch.stack((self.packed >> 4, self.packed & 15), dim=-1).flatten()
            return (self.code[both.long()].view(-1, self.block) * self.absmax[:, None]).view(self.shape).to(E4M3)
        from finetune_trainer.speed import nf4_triton  # Triton is there on CUDA machines only

        out, count = self.packed.new_empty(self.shape, dtype=E4M3), self.packed.numel()
        sizes: dict[str, Any] = {"HALF": self.block // 2, "BLOCK": EXPANDED_BLOCK, "num_warps": EXPANDED_WARPS}
        nf4_triton.expand[(-(-count // EXPANDED_BLOCK),)](self.packed, self.absmax, self.code, out, count, **sizes)
        return out

    def expand_turned(self, out: Tensor, at: int) -> None:
        """Write (in, out) in FP8 into these columns of `out`, from column `at` on."""
        rows, columns = self.shape
        if not on_gpu(out):
            out[:, at : at + rows] = self.expanded().t()
            return
        from finetune_trainer.speed import fp8_triton

        grid = (-(-rows // TILE), -(-columns // TILE))
        given = (self.packed, self.absmax, self.code, out, rows, columns, out.shape[1], at)
        fp8_triton.expand_turned[grid](*given, SHARED=self.block, TILE=TILE, num_warps=TURNING_WARPS)


def frozen(weights: Sequence[Any], scales: Sequence[Tensor]) -> tuple[Frozen, ...] | None:
    """Weights of bitsandbytes' layers that multiply one input, and the float32 scales of their blocks; None where a width is
    none that FP8 products take. All have one scale, as their gradients are multiplied together.
    """
    if any(width % MULTIPLE for weight in weights for width in weight.quant_state.shape):
        return None
    scale = torch.stack([absmax.max() for absmax in scales]).max() / LARGEST
    states = [weight.quant_state for weight in weights]
    repeated = scale.expand(1, max(width for state in states for width in state.shape)).contiguous()
    return tuple(
        Frozen(weight.data.flatten(), absmax, state.code.float() / scale, repeated, tuple(state.shape), state.blocksize)
        for weight, absmax, state in zip(weights, scales, states, strict=True)
    )


# ── Products ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def product(x: Rows, weight: Frozen) -> Tensor:
    """x Wᵀ, (tokens, out)."""
    return _multiplied(x, weight.expanded(), weight.scales)


def product_back(grads: Rows, weights: Sequence[Frozen]) -> Tensor:
    """The sum of each gradient times its W, (tokens, in); the gradients lie side by side."""
    width = weights[0].shape[1]
    turned, at = grads.values.new_empty((width, grads.values.shape[1])), 0
    for weight in weights:
        weight.expand_turned(turned, at)
        at += weight.shape[0]
    return _multiplied(grads, turned, weights[0].scales)


def _multiplied(x: Rows, weight: Tensor, scales: Tensor) -> Tensor:
    """(n, k) times the (m, k) of a weight, its scales one for each of m."""
    scales = scales[:, : weight.shape[0]]
    if not x.values.is_cuda:
        return ((x.values.float() * x.scales) @ (weight.float() * scales.t()).t()).to(x.dtype)
    return torch._scaled_mm(x.values, weight.t(), x.scales, scales, out_dtype=x.dtype, use_fast_accum=True)


# ── What goes into them ───────────────────────────────────────────────────────────────────────────────────────────────


def by_rows(*parts: Tensor) -> Rows:
    """Up to three matrices of as many rows, side by side."""
    if not on_gpu(parts[0]):
        return _plain(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
    from finetune_trainer.speed import fp8_triton

    made = _empty(parts[0], sum(part.shape[1] for part in parts))
    first, second, third = (*parts, *parts[:1] * (3 - len(parts)))
    widths = [*(part.shape[1] for part in parts), *[0] * (3 - len(parts))]
    grid = (len(made.values),)
    fp8_triton.by_rows[grid](first, second, third, made.values, made.scales, *widths, BLOCK=BLOCK, num_warps=WARPS)
    return made


def swiglu(gate: Tensor, up: Tensor) -> tuple[Tensor, Rows]:
    """silu(gate) * up, and the same in FP8."""
    if not on_gpu(gate):
        hidden = plain_swiglu.swiglu(gate, up)
        return hidden, _plain(hidden)
    from finetune_trainer.speed import fp8_triton

    hidden, made = torch.empty_like(gate), _empty(gate, gate.shape[1])
    given = (gate, up, hidden, made.values, made.scales, gate.shape[1])
    fp8_triton.swiglu[(len(gate),)](*given, BLOCK=BLOCK, num_warps=GATED_WARPS)
    return hidden, made


def swiglu_backward(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Rows]:
    """(silu(gate) * up, d gate, d up) for the gradient of the product, which may be overwritten, and both gradients in FP8."""
    if not on_gpu(gate):
        hidden, dgate, dup = plain_swiglu.swiglu_backward(gate, up, grad)
        return hidden, dgate, dup, by_rows(dgate, dup)
    from finetune_trainer.speed import fp8_triton

    hidden, dgate, made = torch.empty_like(gate), torch.empty_like(gate), _empty(gate, 2 * gate.shape[1])
    given = (gate, up, grad, hidden, dgate, made.values, made.scales, gate.shape[1])
    fp8_triton.swiglu_backward[(len(gate),)](*given, BLOCK=BLOCK, num_warps=GATED_WARPS)
    return hidden, dgate, grad, made


def _plain(x: Tensor) -> Rows:
    largest = x.float().abs().amax(dim=1, keepdim=True)
    is_zero = largest == 0  # such a row may have any scale
    by = torch.where(is_zero, 1.0, LARGEST / largest)
    return Rows((x.float() * by).to(E4M3), torch.where(is_zero, 1.0, largest / LARGEST), x.dtype)


def _empty(like: Tensor, width: int) -> Rows:
    values = like.new_empty((len(like), width), dtype=E4M3)
    return Rows(values, like.new_empty((len(like), 1), dtype=torch.float32), like.dtype)
