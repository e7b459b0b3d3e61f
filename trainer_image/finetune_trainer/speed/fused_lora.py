"""LoRA over a frozen linear layer as one autograd function, so that an adapter costs few passes over the activations.

PEFT computes `base(x)`, clones it, then adds `scale * B(A(x))`: six passes over every output, and autograd keeps the
input twice. Here the frozen product goes on top of the low-rank one (a GEMM with beta = 1), projections
that read one input share a pass over it, and of a gated MLP only `gate(x)` and `up(x)` are kept for the backward pass.

    y  = x Wᵀ + s (x Aᵀ) Bᵀ          dx = dy W + s (dy B) A          dA = s (dy B)ᵀ x          dB = s dyᵀ (x Aᵀ)

The idea of recomputing around the 4-bit product is Unsloth's (`fast_lora`) and Axolotl's (`lora_mlp_kernel`); see
docs/training-speed.md for what it gains. W is dequantized from 4 bits for each product and thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from finetune_trainer.speed.nf4 import expanded
from finetune_trainer.speed.swiglu import swiglu, swiglu_backward


@dataclass(frozen=True)
class Projection:
    """One adapted linear layer: the frozen weight (dense, NF4 or FP4), its bias, the adapter's A (r, in) and B (out, r)."""

    base: nn.Module
    lora_a: Tensor
    lora_b: Tensor
    scale: float
    absmax: Tensor | None = None  # float32 block scales of a 4-bit weight, their own quantization undone once

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The frozen weight, shape (out, in), in the given type; 4-bit weights are expanded anew at each call."""
        weight: Any = self.base.weight
        return weight.to(dtype) if self.absmax is None else expanded(weight, self.absmax, dtype)

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.base, "bias", None)


class LoraLinears(torch.autograd.Function):
    """Several projections of one input: x (tokens, in), then A and B of each, to one (tokens, out) for each.

    Keeps x and the tiny (tokens, r) products; the outputs are not kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, projections: tuple[Projection, ...], *adapters: Tensor) -> tuple[Tensor, ...]:
        down = _down(x, adapters[0::2])
        outputs = tuple(_project(x, p, xa, b) for p, xa, b in zip(projections, down, adapters[1::2], strict=True))
        ctx.projections = projections
        ctx.save_for_backward(x, *adapters, *down)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        count = len(ctx.projections)
        adapters, down = saved[: 2 * count], saved[2 * count :]
        grads = tuple(g.contiguous() for g in grads)
        ups = _ups(grads, ctx.projections, adapters[1::2])
        dx = _input_grad(grads, ups, ctx.projections, adapters[0::2]) if ctx.needs_input_grad[0] else None
        return (dx, None, *_adapter_grads(x, grads, ups, down, ctx.projections))


class LoraGatedMLP(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) with three adapters. Keeps x, gate(x) and up(x); their product is made again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, projections: tuple[Projection, ...], *adapters: Tensor) -> Tensor:
        gate_p, up_p, down_p = projections
        xa_gate, xa_up = _down(x, adapters[0:4:2])
        gate, up = _project(x, gate_p, xa_gate, adapters[1]), _project(x, up_p, xa_up, adapters[3])
        hidden = swiglu(gate, up)
        (ha,) = _down(hidden, adapters[4:5])
        out = _project(hidden, down_p, ha, adapters[5])
        ctx.projections = projections
        ctx.save_for_backward(x, gate, up, *adapters, xa_gate, xa_up, ha)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, gate, up, *rest = ctx.saved_tensors
        adapters, (xa_gate, xa_up, ha) = rest[:6], rest[6:]
        gate_p, up_p, down_p = ctx.projections
        grad = grad.contiguous()
        ups_down = _ups((grad,), (down_p,), adapters[5:6])
        dhidden = _input_grad((grad,), ups_down, (down_p,), adapters[4:5])
        hidden, dgate, dup = swiglu_backward(gate, up, dhidden)
        down_grads = _adapter_grads(hidden, (grad,), ups_down, (ha,), (down_p,))
        inner = (dgate, dup)
        ups = _ups(inner, (gate_p, up_p), adapters[1:4:2])
        dx = _input_grad(inner, ups, (gate_p, up_p), adapters[0:4:2]) if ctx.needs_input_grad[0] else None
        return (dx, None, *_adapter_grads(x, inner, ups, (xa_gate, xa_up), (gate_p, up_p)), *down_grads)


def _down(x: Tensor, a: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """x Aᵀ for several A in one pass over x: (tokens, r) each."""
    if len(a) == 1:
        return (x @ a[0].to(x.dtype).t(),)
    stacked = x @ torch.cat([m.to(x.dtype) for m in a]).t()
    return tuple(t.contiguous() for t in stacked.split([m.shape[0] for m in a], dim=1))


def _project(x: Tensor, p: Projection, xa: Tensor, b: Tensor) -> Tensor:
    """The adapter's product first: what it writes the large one reads while it multiplies, and no pass is for it alone."""
    b = b.to(x.dtype)
    out = _scaled(xa, b.t(), p.scale) if p.bias is None else torch.addmm(p.bias.to(x.dtype), xa, b.t(), alpha=p.scale)
    return out.addmm_(x, p.weight(x.dtype).t())


def _ups(grads: tuple[Tensor, ...], projections: tuple[Projection, ...], b: Sequence[Tensor]) -> Tensor:
    """s dy B of each projection side by side: (tokens, the sum of their r)."""
    found = [_scaled(grad, m.to(grad.dtype), p.scale) for grad, p, m in zip(grads, projections, b, strict=True)]
    return torch.cat(found, dim=1) if len(found) > 1 else found[0]


def _input_grad(grads: tuple[Tensor, ...], ups: Tensor, projections: tuple[Projection, ...], a: Sequence[Tensor]) -> Tensor:
    """dx, shape (tokens, in). Of the adapters all go in by one product, and first, as in `_project`."""
    dx = ups @ (torch.cat([m.to(ups.dtype) for m in a]) if len(a) > 1 else a[0].to(ups.dtype))
    for grad, p in zip(grads, projections, strict=True):
        dx.addmm_(grad, p.weight(grad.dtype))
    return dx


def _adapter_grads(
    x: Tensor, grads: tuple[Tensor, ...], ups: Tensor, down: Sequence[Tensor], projections: tuple[Projection, ...]
) -> list[Tensor]:
    """dA and dB of each projection, in the order in which they came."""
    da = (ups.t() @ x).split([p.lora_a.shape[0] for p in projections])
    found: list[Tensor] = []
    for grad, xa, p, a_grad in zip(grads, down, projections, da, strict=True):
        found += [a_grad.to(p.lora_a.dtype), _scaled(grad.t(), xa, p.scale).to(p.lora_b.dtype)]
    return found


def _scaled(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale · left right, as one product."""
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scale)


# ── Putting it into a PEFT model ──────────────────────────────────────────────────────────────────────────────────────


def projection(layer: nn.Module) -> Projection | None:
    """The layer as a Projection, or None where PEFT must do it: dropout, DoRA, an adapter's bias, several adapters."""
    from peft.tuners.lora import LoraLayer

    if not isinstance(layer, LoraLayer) or len(layer.active_adapters) != 1:
        return None
    name = layer.active_adapters[0]
    plain = name in layer.lora_A and not layer.use_dora.get(name) and not layer.lora_bias.get(name)
    base = layer.get_base_layer()
    dense = isinstance(base, nn.Linear) and (base.weight.is_floating_point() or hasattr(base.weight, "quant_state"))
    if not plain or not dense or not isinstance(layer.lora_dropout[name], nn.Identity):
        return None
    adapter = layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])
    return Projection(base, *adapter, absmax=_absmax(base))


def _absmax(base: nn.Module) -> Tensor | None:
    """Block scales of a 4-bit weight in float32. Undoing double quantization costs 3/64 byte a weight and saves two
    kernel launches at every use, which on small micro-batches is what the step waits for."""
    state: Any = getattr(base.weight, "quant_state", None)
    if state is None:
        return None
    if not state.nested:
        return state.absmax  # type: ignore[no-any-return]
    from bitsandbytes.functional import dequantize_blockwise

    return (dequantize_blockwise(state.absmax, state.state2) + state.offset).float()  # type: ignore[no-any-return]


def fuse(model: nn.Module) -> int:
    """Replace the forward of adapted attention projections and gated MLPs. Returns how many linear layers it took.

    Layers that need what the fused path does not do keep PEFT's own forward, and so does every layer while its adapter
    is disabled or merged: the model stays right either way.
    """
    fused = 0
    for module in list(model.modules()):
        mlp = _projections(module, "gate_proj", "up_proj", "down_proj")
        if mlp and isinstance(getattr(module, "act_fn", None), nn.SiLU | SiLUActivation):
            _fuse_mlp(module, mlp)
            fused += 3
        attention = _projections(module, "q_proj", "k_proj", "v_proj")
        if attention:
            _share_input(module, attention)
            fused += 3
        for p in _projections(module, "o_proj"):
            _fuse_linear(module.o_proj, p)
            fused += 1
    return fused


def _projections(module: nn.Module, *names: str) -> tuple[Projection, ...]:
    """The named children as projections; empty unless all of them are."""
    found = [projection(m) for name in names if isinstance(m := getattr(module, name, None), nn.Module)]
    return tuple(p for p in found if p is not None) if len(found) == len(names) and all(found) else ()


def _adapters(projections: tuple[Projection, ...]) -> list[Tensor]:
    return [t for p in projections for t in (p.lora_a, p.lora_b)]


def _adapting(layer: Any) -> bool:
    return not (layer.disable_adapters or layer.merged)


def _fuse_mlp(mlp: Any, projections: tuple[Projection, ...]) -> None:
    plain = mlp.forward

    def forward(x: Tensor) -> Tensor:
        if not _adapting(mlp.gate_proj):
            return plain(x)  # type: ignore[no-any-return]
        out: Tensor = LoraGatedMLP.apply(x.reshape(-1, x.shape[-1]), projections, *_adapters(projections))  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], -1)

    mlp.forward = forward


def _fuse_linear(layer: Any, p: Projection) -> None:
    plain = layer.forward

    def forward(x: Tensor) -> Tensor:
        if not _adapting(layer):
            return plain(x)  # type: ignore[no-any-return]
        out: Tensor = LoraLinears.apply(x.reshape(-1, x.shape[-1]), (p,), *_adapters((p,)))[0]  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], -1)

    layer.forward = forward


def _share_input(attention: Any, projections: tuple[Projection, ...]) -> None:
    """q, k and v read the same hidden states: q_proj computes all three, k_proj and v_proj hand out what it left.

    This keeps each architecture's own attention code, which calls the three in this order with one tensor.
    """
    waiting: dict[str, tuple[Tensor, Tensor]] = {}
    plain_query = attention.q_proj.forward

    def query(x: Tensor) -> Tensor:
        if not _adapting(attention.q_proj):
            return plain_query(x)  # type: ignore[no-any-return]
        flat = x.reshape(-1, x.shape[-1])
        q: Tensor
        q, k, v = (t.view(*x.shape[:-1], -1) for t in LoraLinears.apply(flat, projections, *_adapters(projections)))  # type: ignore[no-untyped-call]
        waiting["k_proj"], waiting["v_proj"] = (x, k), (x, v)
        return q

    def hand_out(name: str) -> None:
        layer = getattr(attention, name)
        plain = layer.forward

        def forward(x: Tensor) -> Tensor:
            if not _adapting(layer):
                return plain(x)  # type: ignore[no-any-return]
            seen, out = waiting.pop(name)
            if seen is not x:
                raise RuntimeError(f"{name} got another input than q_proj: this architecture can't share it")
            return out

        layer.forward = forward

    attention.q_proj.forward = query
    hand_out("k_proj")
    hand_out("v_proj")
