"""The products of LoRA over frozen linear layers: those with the frozen weights in the compute type or in FP8, the adapters'
beside them in the compute type.

    y  = x Wᵀ + s (x Aᵀ) Bᵀ          dx = dy W + s (dy B) A          dA = s (dy B)ᵀ x          dB = s dyᵀ (x Aᵀ)

W is expanded from 4 bits for each product and thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from finetune_trainer.speed import fp8
from finetune_trainer.speed.nf4 import expanded


@dataclass(frozen=True)
class Projection:
    """One adapted linear layer: the frozen weight (dense, NF4 or FP4), its bias, the adapter's A (r, in) and B (out, r)."""

    base: nn.Module
    lora_a: Tensor
    lora_b: Tensor
    scale: float
    absmax: Tensor | None = None  # float32 block scales of a 4-bit weight, their own quantization undone once
    frozen: fp8.Frozen | None = None  # where it is multiplied in FP8
    state: Any = None  # of a 4-bit weight's quantization, which a weight that ranks share out does not carry itself
    modules: tuple[nn.Module, ...] = ()  # that hold A and B

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The frozen weight, shape (out, in), in the given type; 4-bit weights are expanded anew at each call."""
        weight: Any = self.base.weight
        return weight.to(dtype) if self.absmax is None else expanded(weight, self.absmax, dtype, self.state)

    def adapter(self) -> tuple[Tensor, Tensor]:
        """A and B as they are now: where ranks share them out (FSDP) a module has whole ones only while its layer works."""
        if not self.modules:
            return self.lora_a, self.lora_b
        a, b = (module.weight for module in self.modules)
        return a, b  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.base, "bias", None)


def in_fp8(projections: tuple[Projection, ...]) -> tuple[Projection, ...]:
    """The same projections of one input, multiplied in FP8 where their weights are in 4 bits and their widths allow it."""
    scales = [p.absmax for p in projections if p.absmax is not None]
    if len(scales) < len(projections):
        return projections
    found = fp8.frozen([p.base.weight for p in projections], scales)
    return projections if found is None else tuple(replace(p, frozen=f) for p, f in zip(projections, found, strict=True))


def down(x: Tensor, a: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """x Aᵀ for several A in one pass over x: (tokens, r) each."""
    if len(a) == 1:
        return (x @ a[0].to(x.dtype).t(),)
    return tuple(t.contiguous() for t in down_side_by_side(x, a).split([m.shape[0] for m in a], dim=1))


def down_side_by_side(x: Tensor, a: Sequence[Tensor]) -> Tensor:
    """The same as one tensor: (tokens, the sum of their r)."""
    return x @ torch.cat([m.to(x.dtype) for m in a]).t()


def frozen_outputs(x: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    """y of each projection without its adapter, (tokens, out)."""
    biases = (None if p.bias is None else p.bias.to(x.dtype) for p in projections)
    return tuple(nn.functional.linear(x, p.weight(x.dtype), bias) for p, bias in zip(projections, biases, strict=True))


def outputs(
    x: Tensor, projections: Sequence[Projection], xa: Sequence[Tensor], b: Sequence[Tensor], rows: fp8.Rows | None = None
) -> tuple[Tensor, ...]:
    """y of each projection of x, (tokens, out). `rows` is x in FP8, if it is there already."""
    if all(p.frozen is None for p in projections):
        return tuple(_project(x, *one) for one in zip(projections, xa, b, strict=True))
    rows = rows or fp8.by_rows(x)
    return tuple(_project_in_fp8(rows, *one) for one in zip(projections, xa, b, strict=True))


def _project(x: Tensor, p: Projection, xa: Tensor, b: Tensor) -> Tensor:
    """The adapter's product first: what it writes the large one reads while it multiplies, and no pass is for it alone."""
    b = b.to(x.dtype)
    out = scaled(xa, b.t(), p.scale) if p.bias is None else torch.addmm(p.bias.to(x.dtype), xa, b.t(), alpha=p.scale)
    return out.addmm_(x, p.weight(x.dtype).t())


def _project_in_fp8(rows: fp8.Rows, p: Projection, xa: Tensor, b: Tensor) -> Tensor:
    """A product in FP8 goes on top of nothing, so the adapter's comes second."""
    assert p.frozen is not None  # all projections of an input have one, or none has
    out = fp8.product(rows, p.frozen).addmm_(xa, b.to(xa.dtype).t(), alpha=p.scale)
    return out if p.bias is None else out.add_(p.bias)


def ups(grads: Sequence[Tensor], projections: Sequence[Projection], b: Sequence[Tensor]) -> Tensor:
    """s dy B of each projection side by side: (tokens, the sum of their r)."""
    found = [scaled(grad, m.to(grad.dtype), p.scale) for grad, p, m in zip(grads, projections, b, strict=True)]
    return torch.cat(found, dim=1) if len(found) > 1 else found[0]


def input_grad(
    grads: Sequence[Tensor], up: Tensor, projections: Sequence[Projection], a: Sequence[Tensor], rows: fp8.Rows | None = None
) -> Tensor:
    """dx, shape (tokens, in); `up` is what `ups` made. Of the adapters all go in by one product. `rows` are the gradients side
    by side in FP8, if they are there already.
    """
    adapters = torch.cat([m.to(up.dtype) for m in a]) if len(a) > 1 else a[0].to(up.dtype)
    weights = [p.frozen for p in projections if p.frozen is not None]
    if weights:
        return fp8.product_back(rows or fp8.by_rows(*grads), weights).addmm_(up, adapters)
    dx = up @ adapters  # first, as in `_project`
    for grad, p in zip(grads, projections, strict=True):
        dx.addmm_(grad, p.weight(grad.dtype))
    return dx


def adapter_grads(
    x: Tensor, grads: Sequence[Tensor], up: Tensor, xa: Sequence[Tensor], projections: Sequence[Projection]
) -> list[Tensor]:
    """dA and dB of each projection, in the order in which they came."""
    da = (up.t() @ x).split([p.lora_a.shape[0] for p in projections])
    found: list[Tensor] = []
    for grad, one, p, a_grad in zip(grads, xa, projections, da, strict=True):
        found += [a_grad.to(p.lora_a.dtype), scaled(grad.t(), one, p.scale).to(p.lora_b.dtype)]
    return found


def scaled(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale · left right, as one product."""
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scale)
