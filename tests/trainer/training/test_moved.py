"""After training each trained tensor has moved and no frozen one; under FSDP all that is shared out is of one type."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.training.test_train import LORA

from finetune_trainer.contract.adapters import NF4, Quantization
from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.training import Method, Training
from finetune_trainer.failures import StepFailed
from finetune_trainer.model import adapters, loading
from finetune_trainer.model.compute import Compute, trained_weights_type
from finetune_trainer.training import moved

FROZEN = "base_model.model.model.layers.1.mlp.down_proj.base_layer.weight"
TRAINED = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
CPU = Compute("cpu", torch.float32)
INT8 = Quantization(bits=8)
PLAIN_FP4 = Quantization(type="FP4", double_quantization=False)


@pytest.fixture
def adapted(tiny_model: Path) -> Any:
    return adapters.add_adapters(loading.load_base(tiny_model, Method.LORA, CPU), Training.model_validate(LORA))


def move(network: Any, moves: Callable[[str, torch.nn.Parameter], bool]) -> None:
    """What an optimizer does to each tensor that is chosen: a little."""
    for name, parameter in network.named_parameters():
        if moves(name, parameter):
            parameter.data.flatten()[::64] += 1e-3


def test_trained_tensors_that_moved_pass(adapted: Any) -> None:
    before = moved.trace(adapted)
    move(adapted, lambda _, parameter: parameter.requires_grad)
    moved.check_trained(before, adapted, steps=2)


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        (lambda name, _: name == FROZEN or "lora" in name, f"frozen weights changed: 1 tensors, such as {FROZEN}"),
        (lambda name, _: name != TRAINED and "lora" in name, f"weights did not train: 1 tensors, such as {TRAINED}"),
        (lambda *_: False, "weights did not train: 28 tensors"),  # seven linear layers in two blocks, A and B each
        (lambda name, _: "lora_A" in name, "weights did not train: 14 tensors"),
    ],
    ids=["frozen moved", "one stayed", "none moved", "every B stayed"],
)
def test_pain_15_weights_that_did_not_train_are_refused(adapted: Any, moves: Any, message: str) -> None:
    before = moved.trace(adapted)
    move(adapted, moves)
    with pytest.raises(StepFailed) as refused:
        moved.check_trained(before, adapted, steps=2)
    assert message in str(refused.value)
    assert refused.value.exit_code is ExitCode.VERIFICATION_FAILED


@pytest.mark.parametrize("quantization", [NF4, PLAIN_FP4], ids=["NF4", "FP4, scales not rounded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pain_18_fsdp_shares_out_4_bit_weights_and_adapters_of_one_type(
    tiny_model: Path, dtype: torch.dtype, quantization: Quantization
) -> None:
    """FSDP flattens what it shards into tensors of one type: 4-bit bytes must pass for numbers of the compute type."""
    compute = Compute("cpu", dtype)
    network = loading.load_base(tiny_model, Method.QLORA, compute, strategy=Strategy.FSDP, quantization=quantization)
    network = adapters.add_adapters(network, Training.model_validate(LORA | {"method": "QLoRA"}))
    trained = trained_weights_type(Method.QLORA, compute, Strategy.FSDP)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(trained)
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    quantized = network.get_submodule(FROZEN.removesuffix(".weight")).weight
    assert (quantized.quant_state.dtype, quantized.quant_type) == (dtype, quantization.type.lower())
    assert quantized.quant_state.nested is quantization.double_quantization
    assert quantized.numel() < 256 * 512 / 3  # it is in 4 bits although its type is wider


def test_pain_18_a_single_gpu_keeps_4_bit_weights_in_bytes(tiny_model: Path) -> None:
    network = loading.load_base(tiny_model, Method.QLORA, Compute("cpu", torch.bfloat16))
    assert network.model.layers[0].mlp.up_proj.weight.dtype is torch.uint8


@pytest.mark.parametrize(
    ("method", "quantization"), [(Method.LORA, NF4), (Method.QLORA, NF4), (Method.QLORA, PLAIN_FP4), (Method.QLORA, INT8)]
)
def test_orthogonal_adapters_begin_as_the_base_model_though_neither_matrix_is_zero(
    tiny_model: Path, method: Method, quantization: Quantization
) -> None:
    row = torch.tensor([[4, 5, 6]])
    network = loading.load_base(tiny_model, method, CPU, quantization=quantization)
    with torch.no_grad():
        before = network(input_ids=row).logits
        adapted = adapters.add_adapters(network, Training.model_validate(LORA | {"lora": {"init": "Orthogonal"}}))
        torch.testing.assert_close(adapted(input_ids=row).logits, before, rtol=1e-4, atol=1e-5)
    layer = adapted.get_base_model().model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.dtype is b.dtype is torch.float32
    assert [float(m.detach().std()) for m in (a, b)] == pytest.approx([0.07, 0.07], rel=0.2)


@pytest.mark.parametrize("dropout", [0, 0.1])
def test_pain_15_dora_on_4_bit_weights_answers_in_the_compute_type(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """Its lengths are in float32. PEFT would answer in that, and so would all layers behind: flash attention refuses it."""
    compute = Compute("cpu", torch.bfloat16)
    network = loading.load_base(tiny_model, Method.QLORA, compute)
    lora = {"dora": True, "dropout": dropout}
    network = adapters.add_adapters(network, Training.model_validate(LORA | {"method": "QLoRA", "lora": lora}))
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:  # as Loop.set_trained_type has them
            parameter.data = parameter.data.to(torch.float32 if "magnitude" in name else torch.bfloat16)
    answers = set[torch.dtype]()
    for name, module in network.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            module.register_forward_hook(lambda _, __, answer: answers.add(answer.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: True)  # PEFT asks whether CUDA's is
        network.train()(input_ids=torch.tensor([[4, 5, 6]]))
    assert answers == {torch.bfloat16}


def test_8_bit_weights_on_cpus_answer_in_evaluation_as_in_training(tiny_model: Path) -> None:
    """bitsandbytes would round what goes into them in evaluation: a validation would judge another model."""
    network = loading.load_base(tiny_model, Method.QLORA, CPU, quantization=INT8)
    assert network.model.layers[0].mlp.up_proj.weight.dtype is torch.int8
    row = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        assert torch.equal(network.train()(input_ids=row).logits, network.eval()(input_ids=row).logits)


def test_weights_that_are_not_quantized_need_no_bitsandbytes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quantizer's image, which loads merged models, has none."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert loading.load_base(tiny_model, Method.FULL, CPU).dtype is torch.float32
