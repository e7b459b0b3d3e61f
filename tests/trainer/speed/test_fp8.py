"""Products in FP8: what is rounded, and that all else is computed as without; Triton's kernels are interpreted here."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from bitsandbytes.functional import quantize_4bit
from tests.trainer.speed.test_acceleration import adapted, in_4_bits, llama, loss_and_gradients
from torch import Tensor, nn
from torch.nn import functional
from transformers import BloomConfig

from finetune_trainer.contract.adapters import Quantization
from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.reports import FitFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Training
from finetune_trainer.failures import StepFailed
from finetune_trainer.model.compute import Compute, check_fp8
from finetune_trainer.model.outline import outline
from finetune_trainer.speed import acceleration, fp8, fused_lora
from finetune_trainer.speed.fused_lora import LoraGatedMLPApart, LoraLinears, fuse
from finetune_trainer.speed.projections import Projection, in_fp8
from finetune_trainer.speed.swiglu import swiglu_backward
from finetune_trainer.training.trainable import _check_adapters

TOKENS, IN, OUT, RANK, SCALE = 24, 64, (96, 32, 48), 4, 2.0


class Layer(nn.Module):
    """A frozen linear layer in NF4, without or with a bias."""

    bias: Tensor | None

    def __init__(self, out: int, width: int, *, bias: bool = False) -> None:
        super().__init__()
        packed, state = quantize_4bit(torch.randn(out, width), blocksize=64, quant_type="nf4")
        frozen: Any = nn.Parameter(packed, requires_grad=False)
        frozen.quant_state = state
        self.weight = frozen
        self.bias = torch.randn(out) if bias else None


def layers(*shapes: tuple[int, int], bias: bool = False) -> tuple[Projection, ...]:
    """Projections as they are found in a network, each B other than zero."""
    made = []
    for out, width in shapes:
        layer = Layer(out, width, bias=bias)
        a, b = torch.randn(RANK, width, requires_grad=True), torch.randn(out, RANK, requires_grad=True)
        made.append(Projection(layer, a, b, SCALE, fused_lora._absmax(layer)))
    return tuple(made)


def rounded(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """The numbers that FP8 has for these: each row by its largest, or all by one scale."""
    scale = x.abs().amax(dim=1, keepdim=True) / 448 if scale is None else scale
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


class Rounded(torch.autograd.Function):
    """x Wᵀ for several W as it is to be: all factors rounded, the gradients of all outputs side by side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        scale = torch.stack([w.abs().max() for w in weights]).max() / 448
        ctx.weights = [rounded(w, scale) for w in weights]
        return tuple(rounded(x) @ w.t() for w in ctx.weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return rounded(torch.cat(grads, dim=1)) @ torch.cat(ctx.weights), *[None for _ in ctx.weights]


def as_it_is_to_be(x: Tensor, projections: tuple[Projection, ...]) -> list[Tensor]:
    products = Rounded.apply(x, *[p.weight(torch.float32) for p in projections])  # type: ignore[no-untyped-call]
    found = [y + p.scale * (x @ p.lora_a.t()) @ p.lora_b.t() for y, p in zip(products, projections, strict=True)]
    return [y if p.bias is None else y + p.bias for y, p in zip(found, projections, strict=True)]


def gradients(of: Tensor, x: Tensor, projections: tuple[Projection, ...]) -> list[Tensor]:
    torch.manual_seed(1)
    return [*torch.autograd.grad(of, [x, *fused_lora._adapters(projections)], torch.randn_like(of))]


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().norm() / other.detach().norm())


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("outs", [OUT[:1], OUT], ids=["one", "three of one input"])
def test_products_of_one_input_are_those_of_rounded_factors(outs: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain, x = layers(*((out, IN) for out in outs), bias=bias), torch.randn(TOKENS, IN, requires_grad=True)
    wanted = torch.cat(as_it_is_to_be(x, plain), dim=1)
    found = torch.cat(LoraLinears.apply(x, in_fp8(plain), *fused_lora._adapters(plain)), dim=1)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
    for one, other in zip(gradients(found, x, plain), gradients(wanted, x, plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_an_mlp_is_that_of_rounded_factors() -> None:
    torch.manual_seed(0)
    gate, up, down = plain = layers((128, IN), (128, IN), (IN, 128))
    x = torch.randn(TOKENS, IN, requires_grad=True)
    both = as_it_is_to_be(x, (gate, up))
    (wanted,) = as_it_is_to_be(functional.silu(both[0]) * both[1], (down,))
    trained = (*in_fp8(plain[:2]), *in_fp8(plain[2:]))
    found = LoraGatedMLPApart.apply(x, trained, True, *fused_lora._adapters(plain))  # type: ignore[no-untyped-call]
    assert apart(found, wanted) < 1e-3
    for one, other in zip(gradients(found, x, plain), gradients(wanted, x, plain), strict=True):
        assert apart(one, other) < 1e-3, "of what is rounded a little otherwise another number becomes"


def test_a_weight_of_another_width_is_multiplied_as_before() -> None:
    odd = layers((40, IN), (96, IN))
    assert in_fp8(odd) is odd
    dense = (Projection(nn.Linear(IN, 96), odd[0].lora_a, odd[1].lora_b, SCALE),)
    assert in_fp8(dense) is dense


def test_a_network_that_trains_multiplies_in_fp8_and_is_judged_as_it_is_merged() -> None:
    network = adapted(in_4_bits(llama(), "nf4", nested=True)).train()
    loss, plain = loss_and_gradients(network)
    assert fuse(network, in_fp8=True) == 14
    judged, _ = loss_and_gradients(network.eval())
    assert judged == pytest.approx(loss, rel=1e-6)

    network.train()
    trained, found = loss_and_gradients(network)
    assert trained != pytest.approx(loss, rel=1e-6)
    assert trained == pytest.approx(loss, rel=0.02)
    errors = [apart(found[name], one) for name, one in plain.items()]
    assert 0.005 < max(errors) < 0.2, errors


# ── Triton's kernels ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in ("max", "sigmoid"):  # triton has made them when it was imported, for GPUs
        monkeypatch.setattr(triton.language, name, triton.jit(getattr(triton.language, name).fn))
    modules = [importlib.import_module(f"finetune_trainer.speed.{name}_triton") for name in ("fp8", "nf4")]
    for module in modules:
        importlib.reload(module)
    monkeypatch.setattr(fp8, "on_gpu", lambda _: True)
    monkeypatch.setattr(fp8, "E4M3", torch.float32)  # the interpreter itself rounds wrongly to FP8: 127 becomes 64
    monkeypatch.setattr(fp8, "BLOCK", 64)
    monkeypatch.setattr(fp8, "TILE", 32)
    yield
    monkeypatch.undo()
    for module in modules:
        importlib.reload(module)


def assert_same(found: fp8.Rows, wanted: fp8.Rows) -> None:
    torch.testing.assert_close(found.scales, wanted.scales, rtol=1e-6, atol=0)
    assert found.dtype is wanted.dtype
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("widths", [(64,), (80,), (96, 32), (96, 32, 80)])
def test_a_kernel_lays_rows_side_by_side(widths: tuple[int, ...]) -> None:
    parts = [torch.randn(5, width) for width in widths]
    for part in parts:
        part[2] = 0
    assert_same(fp8.by_rows(*parts), fp8._plain(torch.cat(parts, dim=1)))


@pytest.mark.usefixtures("interpreted")
def test_a_kernel_multiplies_gates_and_writes_them_in_fp8() -> None:
    gate, up, grad = (torch.randn(5, 144) for _ in range(3))
    hidden, rows = fp8.swiglu(gate, up)
    torch.testing.assert_close(hidden, functional.silu(gate) * up)
    assert_same(rows, fp8._plain(hidden))

    wanted = swiglu_backward(gate, up, grad.clone())
    *found, rows = fp8.swiglu_backward(gate, up, grad)
    torch.testing.assert_close(found, [*wanted])
    assert_same(rows, fp8._plain(torch.cat(found[1:], dim=1)))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("shape", [(64, 64), (48, 128)])
def test_kernels_expand_a_weight_either_way_round(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = Layer(*shape)
    absmax = fused_lora._absmax(layer)
    assert absmax is not None
    (found,) = fp8.frozen([layer.weight], [absmax]) or ()
    turned = torch.zeros(shape[1], 16 + shape[0])
    found.expand_turned(turned, 16)
    expanded = found.expanded()
    monkeypatch.setattr(fp8, "on_gpu", lambda _: False)
    plain = found.expanded()
    torch.testing.assert_close(expanded, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(turned[:, 16:], plain.t(), rtol=1e-6, atol=0)
    assert not turned[:, :16].any()

    whole = torch.ops.bitsandbytes.dequantize_4bit.default(layer.weight.data, absmax, 64, "nf4", shape, torch.float32)
    torch.testing.assert_close(plain * found.scales[0, 0], whole, rtol=1e-5, atol=0)
    monkeypatch.setattr(fp8, "E4M3", torch.float8_e4m3fn)
    torch.testing.assert_close(found.expanded().float() * found.scales[0, 0], whole, rtol=0.0625, atol=0)


# ── Who may have it ───────────────────────────────────────────────────────────────────────────────────────────────────

FP8 = Quantization(products="FP8")


@pytest.mark.parametrize(("capability", "has"), [((8, 6), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)])
def test_a_gpu_without_fp8_is_refused(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Something")
    check_fp8(Quantization())
    if has:
        check_fp8(FP8)
        return
    with pytest.raises(StepFailed, match=r"products: NVIDIA Something has no FP8, .* set it to Compute") as refused:
        check_fp8(FP8)
    assert refused.value.reason == "InvalidSpec"


def test_a_model_without_such_layers_is_refused_before_a_gpu_is_taken(tmp_path: Path) -> None:
    BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2, architectures=["BloomForCausalLM"]).save_pretrained(
        tmp_path
    )
    _check_adapters(outline(tmp_path), Training(), tmp_path)
    with pytest.raises(StepFailed, match=r"spec\.training\.quantization\.products: none of this model's layers"):
        _check_adapters(outline(tmp_path), Training(quantization=FP8), tmp_path)
    llama().config.save_pretrained(tmp_path)
    _check_adapters(outline(tmp_path), Training(quantization=FP8), tmp_path)


@pytest.mark.parametrize("products", ["Compute", "FP8"])
def test_products_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, products: str) -> None:
    told: list[bool] = []

    def fused(_: Any, *, in_fp8: bool, keep: int | None) -> int:
        assert keep is None
        told.append(in_fp8)
        return 14

    monkeypatch.setattr(fused_lora, "fuse", fused)
    monkeypatch.setattr(acceleration, "_liger", lambda *_, **__: None)
    monkeypatch.setattr(acceleration, "_line", lambda *_: None)
    training = {"quantization": {"products": products}}
    fields = {"training": training, "devices": {"gpus": 1}, "model": {"uri": "pvc://c/m"}, "dataset": {"uri": "pvc://c/d"}}
    run = RunConfig.model_validate({"namespace": "n", "name": "j", "store": {"uri": "pvc://c/s"}} | fields)
    fit = FitFacts(predicted_bytes=1, micro_batch_size=1, gradient_checkpointing="Off")
    acceleration.accelerate(
        SimpleNamespace(base_model=None), SimpleNamespace(), Compute("cuda", torch.bfloat16), run, fit, tmp_path
    )
    assert told == [products == "FP8"]


@pytest.mark.parametrize(("strategy", "found"), [("FSDP", ["fused", "Liger, swiglu False"]), ("ZeRO3", [])])
def test_shared_out_weights_are_fused_with_fsdp_and_stay_as_they_are_with_zero(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, strategy: str, found: list[str]
) -> None:
    told: list[str] = []
    monkeypatch.setattr(fused_lora, "fuse", lambda *_, **__: 14 * (told.append("fused") is None))  # type: ignore[func-returns-value]
    monkeypatch.setattr(acceleration, "_liger", lambda _, *, swiglu, **__: told.append(f"Liger, swiglu {swiglu}"))
    fields = {"devices": {"gpus": 2}, "model": {"uri": "pvc://c/m"}, "dataset": {"uri": "pvc://c/d"}, "training": {}}
    run = RunConfig.model_validate({"namespace": "n", "name": "j", "store": {"uri": "pvc://c/s"}} | fields)
    fit = FitFacts(predicted_bytes=1, micro_batch_size=1, gradient_checkpointing="Off", strategy=Strategy(strategy))
    network = SimpleNamespace(base_model=None)
    assert acceleration.accelerate(network, SimpleNamespace(), Compute("cuda", torch.bfloat16), run, fit, tmp_path) is None
    assert told == found
