"""LoRA over a frozen linear layer as one autograd function, so that an adapter costs few passes over the activations.

PEFT computes `base(x)`, clones it, then adds `scale * B(A(x))`: six passes over every output, and autograd keeps the
input twice. Here the frozen product goes on top of the low-rank one (a GEMM with beta = 1), projections
that read one input share a pass over it, and of a gated MLP only `gate(x)` and `up(x)` are kept for the backward pass,
or not even those. The products themselves are in projections.py.

The idea of recomputing around the 4-bit product is Unsloth's (`fast_lora`) and Axolotl's (`lora_mlp_kernel`); see
docs/training-speed.md for what it gains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from finetune_trainer.speed import fp8, gated, projections
from finetune_trainer.speed.projections import (
    Projection,
    adapter_grads,
    down,
    down_side_by_side,
    frozen_outputs,
    input_grad,
    outputs,
    scaled,
    ups,
)
from finetune_trainer.speed.swiglu import swiglu, swiglu_backward


class LoraLinears(torch.autograd.Function):
    """Several projections of one input: x (tokens, in), then A and B of each, to one (tokens, out) for each.

    Keeps x and the tiny (tokens, r) products; the outputs are not kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, adapted: tuple[Projection, ...], *adapters: Tensor) -> tuple[Tensor, ...]:
        xa = down(x, adapters[0::2])
        ctx.adapted = adapted
        ctx.save_for_backward(x, *adapters, *xa)
        return outputs(x, adapted, xa, adapters[1::2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        count = len(ctx.adapted)
        adapters, xa = saved[: 2 * count], saved[2 * count :]
        grads = tuple(g.contiguous() for g in grads)
        up = ups(grads, ctx.adapted, adapters[1::2])
        dx = input_grad(grads, up, ctx.adapted, adapters[0::2]) if ctx.needs_input_grad[0] else None
        return (dx, None, *adapter_grads(x, grads, up, xa, ctx.adapted))


class LoraGatedMLP(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) with three adapters of one rank, by gated.py. Keeps x, and where `keeps` asks for it what the
    frozen layers make of it, gate and up; what is not kept is made again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, adapted: tuple[Projection, ...], keeps: bool, *adapters: Tensor) -> Tensor:
        inner, last = adapted[:2], adapted[2:]
        xa = down_side_by_side(x, adapters[0:4:2])
        gate, up = frozen_outputs(x, inner)
        hidden, ha = gated.forward(gate, up, xa, _wide(adapted, adapters))
        ctx.adapted = adapted
        ctx.save_for_backward(x, *adapters, xa, ha, *((gate, up) if keeps else ()))
        return outputs(hidden, last, (ha,), adapters[5:6])[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *rest = ctx.saved_tensors
        adapters, (xa, ha) = rest[:6], rest[6:8]
        inner, last = ctx.adapted[:2], ctx.adapted[2:]
        gate, up = rest[8:] or frozen_outputs(x, inner)
        grad = grad.contiguous()
        over = ups((grad,), last, adapters[5:6])
        dhidden = grad @ last[0].weight(grad.dtype)
        *wide, low, db_gate, db_up, da_last = gated.backward(gate, up, dhidden, xa, over, _wide(ctx.adapted, adapters))
        dx = input_grad(wide, low, inner, adapters[0:4:2]) if ctx.needs_input_grad[0] else None
        da_gate, da_up = (low.t() @ x).chunk(2)
        db_last = scaled(grad.t(), ha, last[0].scale)
        found = (da_gate, db_gate, da_up, db_up, da_last, db_last)
        return (dx, None, None, *(d.to(one.dtype) for d, one in zip(found, adapters, strict=True)))


def _wide(adapted: tuple[Projection, ...], adapters: Sequence[Tensor]) -> gated.Adapters:
    return gated.Adapters((adapters[1], adapters[3]), (adapted[0].scale, adapted[1].scale), adapters[4])


class LoraGatedMLPApart(torch.autograd.Function):
    """The same where adapters' products are passes of their own: with products in FP8, with other ranks, in float32 on GPUs.
    Keeps gate(x) and up(x) themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, adapted: tuple[Projection, ...], keeps: bool, *adapters: Tensor) -> Tensor:
        inner, last = adapted[:2], adapted[2:]
        xa = down(x, adapters[0:4:2])
        gate, up = outputs(x, inner, xa, adapters[1:4:2])
        hidden, rows = (swiglu(gate, up), None) if last[0].frozen is None else fp8.swiglu(gate, up)
        ha = down(hidden, adapters[4:5])
        ctx.adapted = adapted
        ctx.save_for_backward(x, *adapters, *xa, *ha, *((gate, up) if keeps else ()))
        return outputs(hidden, last, ha, adapters[5:6], rows)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *rest = ctx.saved_tensors
        adapters, xa, ha = rest[:6], rest[6:8], rest[8:9]
        inner, last = ctx.adapted[:2], ctx.adapted[2:]
        gate, up = rest[9:] or outputs(x, inner, xa, adapters[1:4:2])
        out = (grad.contiguous(),)
        out_up = ups(out, last, adapters[5:6])
        dhidden = input_grad(out, out_up, last, adapters[4:5])
        hidden, *grads, rows = _through_swiglu(gate, up, dhidden, in_fp8=inner[0].frozen is not None)
        last_grads = adapter_grads(hidden, out, out_up, ha, last)
        in_up = ups(grads, inner, adapters[1:4:2])
        dx = input_grad(grads, in_up, inner, adapters[0:4:2], rows) if ctx.needs_input_grad[0] else None
        return (dx, None, None, *adapter_grads(x, grads, in_up, xa, inner), *last_grads)


def _through_swiglu(gate: Tensor, up: Tensor, grad: Tensor, *, in_fp8: bool) -> tuple[Any, ...]:
    """silu(gate) * up, d gate and d up, and both gradients in FP8 where that is wanted."""
    return fp8.swiglu_backward(gate, up, grad) if in_fp8 else (*swiglu_backward(gate, up, grad), None)


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
    a, b = modules = layer.lora_A[name], layer.lora_B[name]
    state = getattr(base.weight, "quant_state", None)
    return Projection(base, a.weight, b.weight, float(layer.scaling[name]), _absmax(base), state=state, modules=modules)


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


def fuse(model: nn.Module, *, in_fp8: bool = False, keep: int | None = None) -> int:
    """Replace the forward of adapted attention projections and gated MLPs. Returns how many linear layers it took.

    Layers that need what the fused path does not do keep PEFT's own forward, and so does every layer while its adapter
    is disabled or merged: the model stays right either way. With `in_fp8` layers that train multiply 4-bit weights in FP8;
    those that are judged, by a validation or by what the merged model must answer as well, multiply as they are merged.
    With `keep` all MLPs but so many, the last ones, compute their inner products again in the backward pass: half of what a
    layer keeps.
    """
    fused = 0
    mlps = {module: mlp for module in model.modules() if (mlp := _mlp(module))}
    keeping = {*mlps} if keep is None else {*[*mlps][max(0, len(mlps) - keep) :]}
    trained: Callable[[tuple[Projection, ...]], tuple[Projection, ...]] = projections.in_fp8 if in_fp8 else tuple
    for module in list(model.modules()):
        if mlp := mlps.get(module, ()):
            _fuse_mlp(module, mlp, (*trained(mlp[:2]), *trained(mlp[2:])), keeps=module in keeping)
            fused += 3
        attention = _projections(module, "q_proj", "k_proj", "v_proj")
        if attention:
            _share_input(module, attention, trained(attention))
            fused += 3
        for p in _projections(module, "o_proj"):
            _fuse_linear(module.o_proj, (p,), trained((p,)))
            fused += 1
    return fused


def _projections(module: nn.Module, *names: str) -> tuple[Projection, ...]:
    """The named children as projections; empty unless all of them are."""
    found = [projection(m) for name in names if isinstance(m := getattr(module, name, None), nn.Module)]
    return tuple(p for p in found if p is not None) if len(found) == len(names) and all(found) else ()


def _mlp(module: nn.Module) -> tuple[Projection, ...]:
    """The projections of a gated MLP with SiLU; empty where it is none."""
    silu = isinstance(getattr(module, "act_fn", None), nn.SiLU | SiLUActivation)
    return _projections(module, "gate_proj", "up_proj", "down_proj") if silu else ()


def _adapters(adapted: tuple[Projection, ...]) -> list[Tensor]:
    return [t for p in adapted for t in p.adapter()]


def _mlp_of(adapted: tuple[Projection, ...]) -> Any:
    """The function that computes an MLP of these projections, by what the kernels in gated.py take."""
    ranks = {p.lora_a.shape[0] for p in adapted}
    together = len(ranks) == 1 and ranks <= gated.FASTER_WITH and all(p.frozen is None for p in adapted)
    return LoraGatedMLP if together else LoraGatedMLPApart


def _adapting(layer: Any) -> bool:
    return not (layer.disable_adapters or layer.merged)


def _fuse_mlp(mlp: Any, judged: tuple[Projection, ...], trained: tuple[Projection, ...], *, keeps: bool) -> None:
    plain = mlp.forward
    by_training = {True: (_mlp_of(trained), trained), False: (_mlp_of(judged), judged)}

    def forward(x: Tensor) -> Tensor:
        if not _adapting(mlp.gate_proj):
            return plain(x)  # type: ignore[no-any-return]
        function, adapted = by_training[mlp.training]
        function = function if gated.takes(x) else LoraGatedMLPApart
        out: Tensor = function.apply(x.reshape(-1, x.shape[-1]), adapted, keeps, *_adapters(adapted))
        return out.view(*x.shape[:-1], -1)

    mlp.forward = forward


def _fuse_linear(layer: Any, judged: tuple[Projection, ...], trained: tuple[Projection, ...]) -> None:
    plain = layer.forward

    def forward(x: Tensor) -> Tensor:
        if not _adapting(layer):
            return plain(x)  # type: ignore[no-any-return]
        adapted = trained if layer.training else judged
        out: Tensor = LoraLinears.apply(x.reshape(-1, x.shape[-1]), adapted, *_adapters(adapted))[0]  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], -1)

    layer.forward = forward


def _share_input(attention: Any, judged: tuple[Projection, ...], trained: tuple[Projection, ...]) -> None:
    """q, k and v read the same hidden states: q_proj computes all three, k_proj and v_proj hand out what it left.

    This keeps each architecture's own attention code, which calls the three in this order with one tensor.
    """
    waiting: dict[str, tuple[Tensor, Tensor]] = {}
    plain_query = attention.q_proj.forward

    def query(x: Tensor) -> Tensor:
        if not _adapting(attention.q_proj):
            return plain_query(x)  # type: ignore[no-any-return]
        flat, adapted = x.reshape(-1, x.shape[-1]), trained if attention.q_proj.training else judged
        q: Tensor
        q, k, v = (t.view(*x.shape[:-1], -1) for t in LoraLinears.apply(flat, adapted, *_adapters(adapted)))  # type: ignore[no-untyped-call]
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
