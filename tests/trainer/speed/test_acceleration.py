"""The fast paths compute what the plain ones do: same loss, same gradients, in float32 on the CPU."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt, Params4bit
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tests.trainer.conftest import train_tokenizer
from tests.trainer.counting import Count
from transformers import Gemma2Config, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from trl import SFTConfig, SFTTrainer

from finetune_trainer.contract.adapters import Quantization
from finetune_trainer.contract.reports import FitFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Method
from finetune_trainer.model.compute import Compute
from finetune_trainer.model.loading import load_base
from finetune_trainer.speed import acceleration
from finetune_trainer.speed.acceleration import _adapters_alone_train, _line, fused_layers
from finetune_trainer.speed.fixed_lines import Line
from finetune_trainer.speed.fused_lora import fuse, projection
from finetune_trainer.speed.swiglu import swiglu, swiglu_backward
from finetune_trainer.training.supervised import SupervisedLoop

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
}
IDS = torch.arange(48).view(3, 16) * 7 % 101


def adapted(model: torch.nn.Module, **lora: Any) -> Any:
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | lora
    network = get_peft_model(model, LoraConfig(**options))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:  # PEFT starts B at zero, which would hide every mistake in A's gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def in_4_bits(model: torch.nn.Module, kind: str, *, nested: bool) -> torch.nn.Module:
    """Replace each linear layer but the head by its 4-bit form, its scales quantized as well where they are `nested`."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                small = Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32)
                small.weight = Params4bit(layer.weight.data, quant_type=kind, compress_statistics=nested)
                setattr(parent, name, small.to("cpu"))
    return model


def loss_and_gradients(network: Any) -> tuple[float, dict[str, torch.Tensor]]:
    network.zero_grad()
    loss = network(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in network.named_parameters() if p.requires_grad}


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def qwen_with_biases() -> Any:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE))


@pytest.mark.parametrize(
    "make",
    [
        llama,
        qwen_with_biases,
        lambda: in_4_bits(llama(), "nf4", nested=True),
        lambda: in_4_bits(llama(), "nf4", nested=False),
        lambda: in_4_bits(llama(), "fp4", nested=True),
        lambda: in_4_bits(llama(), "fp4", nested=False),
    ],
    ids=["dense", "biases", "NF4", "NF4, scales not rounded", "FP4", "FP4, scales not rounded"],
)
@pytest.mark.parametrize("rank", [4, 16], ids=["products apart", "in SwiGLU's sweep"])
def test_fused_lora_gives_the_loss_and_gradients_of_peft(make: Any, rank: int) -> None:
    network = adapted(make(), r=rank)
    loss, gradients = loss_and_gradients(network)
    assert fuse(network) == 14  # seven linear layers in each of two blocks

    fused_loss, fused = loss_and_gradients(network)

    assert fused_loss == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == fused.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(fused[name], gradient, rtol=1e-4, atol=1e-7, msg=f"{{}} in {name}".format)


def noted(kept: list[torch.Tensor], saved: torch.Tensor) -> torch.Tensor:
    kept.append(saved)
    return saved


@pytest.mark.parametrize(("rank", "product"), [(4, "aten::addmm_"), (16, "aten::mm")], ids=["apart", "in SwiGLU's sweep"])
@pytest.mark.parametrize("make", [llama, lambda: in_4_bits(llama(), "nf4", nested=True)], ids=["dense", "NF4"])
def test_mlps_that_keep_nothing_have_the_same_gradients_and_two_products_more(make: Any, rank: int, product: str) -> None:
    found = []
    for keep in (None, 3, 1, 0):
        network = adapted(make(), r=rank)
        fuse(network, keep=keep)
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(noted, kept), lambda t: t), Count() as count:
            _, gradients = loss_and_gradients(network)
        wide = [t for t in kept if t.shape == (IDS.numel(), SHAPE["intermediate_size"])]
        found.append((gradients, len(wide), count.calls[product]))
    (plain, *_), *others = found
    assert [kept for _, kept, _ in found] == [4, 4, 2, 0]
    assert [again - found[0][2] for *_, again in found] == [0, 0, 2, 4]
    for gradients, *_ in others:
        for name, gradient in plain.items():
            assert torch.equal(gradients[name], gradient), name


def test_fused_lora_works_under_gradient_checkpointing() -> None:
    network = adapted(llama())
    _, gradients = loss_and_gradients(network)
    fuse(network)
    network.enable_input_require_grads()
    network.gradient_checkpointing_enable({"use_reentrant": False})
    network.train()

    _, fused = loss_and_gradients(network)

    for name, gradient in gradients.items():
        torch.testing.assert_close(fused[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_disabled_adapter_gives_the_base_model() -> None:
    base = llama()
    want = base(input_ids=IDS, use_cache=False).logits.detach()
    network = adapted(base)
    fuse(network)

    with torch.no_grad(), network.disable_adapter():
        torch.testing.assert_close(network(input_ids=IDS, use_cache=False).logits, want)


@pytest.mark.parametrize("lora", [{"lora_dropout": 0.1}, {"use_dora": True}], ids=["dropout", "dora"])
def test_what_the_fused_path_does_not_do_is_left_to_peft(lora: dict[str, Any]) -> None:
    network = adapted(llama(), **lora)
    assert fuse(network) == 0
    assert projection(network.get_base_model().model.layers[0].mlp.up_proj) is None


def test_8_bit_layers_are_left_to_peft(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    network = adapted(load_base(tmp_path, Method.QLORA, Compute("cpu", torch.float32), quantization=Quantization(bits=8)))
    assert isinstance(network.get_base_model().model.layers[0].mlp.up_proj.get_base_layer(), Linear8bitLt)
    assert fuse(network) == 0


def test_swiglu_backward_is_the_gradient() -> None:
    torch.manual_seed(0)
    gate, up, grad = (torch.randn(5, 8, dtype=torch.float64, requires_grad=i < 2) for i in range(3))
    swiglu(gate, up).backward(grad)
    with torch.no_grad():
        hidden, dgate, dup = swiglu_backward(gate, up, grad.clone())

    torch.testing.assert_close(hidden, swiglu(gate, up))
    torch.testing.assert_close(dgate, gate.grad)
    torch.testing.assert_close(dup, up.grad)


def test_the_loop_with_fused_lora_learns_as_plain_trl_does(tmp_path: Path) -> None:
    """Forty steps on the same rows: the same loss at each, but for the last digits of float32."""
    curves = []
    for trainer, prepare in ((SFTTrainer, torch.nn.Module.train), (SupervisedLoop, fuse)):
        torch.manual_seed(1)
        network = adapted(llama())
        prepare(network)
        draw = random.Random(3)
        rows = [[draw.randrange(4, 20) for _ in range(draw.randrange(5, 24))] for _ in range(80)]
        loop = trainer(
            model=network,
            args=SFTConfig(
                output_dir=str(tmp_path),
                max_steps=40,
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                learning_rate=1e-2,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
            processing_class=train_tokenizer(),
        )
        loop.train()
        curves.append([entry["loss"] for entry in loop.state.log_history if "loss" in entry])

    plain, ours = curves
    assert plain[-1] < plain[0] - 0.1
    assert ours == pytest.approx(plain, rel=1e-3)


def run_on_a_gpu(training: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {"namespace": "n", "name": "j", "model": {"uri": "pvc://c/m"}, "dataset": {"uri": "pvc://c/d"}}
        | {"store": {"uri": "pvc://c/s"}, "devices": {"gpus": 1}, "training": training}
    )


def lined(tmp_path: Path, config: Any, dtype: torch.dtype = torch.bfloat16, **settings: Any) -> Line | None:
    """The line that a model of this configuration is trained on."""
    config.save_pretrained(tmp_path)
    training = {"packing": True, "maxLength": 512, "globalBatchSize": 4} | settings
    fit = FitFacts(predicted_bytes=1, micro_batch_size=2, gradient_checkpointing="Off")
    return _line(tmp_path, run_on_a_gpu(training), fit, Compute("cuda", dtype))


def test_a_line_is_as_long_as_the_micro_batch_s_full_rows(tmp_path: Path) -> None:
    assert lined(tmp_path, LlamaConfig(**SHAPE, architectures=["LlamaForCausalLM"])) == Line(1024, 512)


def test_no_line_where_layers_are_not_recorded(tmp_path: Path) -> None:
    """Not in FP16, whose losses are scaled; not without packing; not where attention is compiled for each line."""
    assert lined(tmp_path, LlamaConfig(**SHAPE), torch.float16) is None
    assert lined(tmp_path, LlamaConfig(**SHAPE), packing=False) is None
    capped = Gemma2Config(**SHAPE, head_dim=16, attn_logit_softcapping=30.0)
    assert lined(tmp_path, capped) is None


def test_layers_are_recorded_only_where_all_that_is_trained_of_them_is_fused() -> None:
    network = adapted(llama())
    layers = fused_layers(network, 14)
    assert layers == [*network.get_base_model().model.layers]
    assert fused_layers(network, 13) == []
    assert _adapters_alone_train(layers)
    network.get_base_model().model.layers[1].input_layernorm.weight.requires_grad_(True)
    assert not _adapters_alone_train(layers)


@pytest.mark.parametrize(
    ("fields", "lora", "kept", "checkpointed"),
    [
        ({}, {}, 1, None),
        ({}, {}, None, None),
        ({"lora": {"dropout": 0.1}}, {"lora_dropout": 0.1}, None, "Selective"),
        ({}, {"target_modules": ["q_proj", "k_proj", "v_proj"]}, 1, "Full"),
        ({"gradientCheckpointing": "Selective"}, {"target_modules": ["q_proj", "v_proj"]}, None, "Selective"),
    ],
    ids=["the last layer keeps all", "none does", "not fused", "fused in part by the estimate's choice", "not fused, as asked"],
)
def test_selective_checkpointing_is_the_fused_layers_own(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fields: dict[str, Any],
    lora: dict[str, Any],
    kept: int | None,
    checkpointed: str | None,
) -> None:
    """Where layers are not fused, products are kept as they come, in the checkpointing that the trainer switches on; or not
    even they, where the estimate took the layers for fused."""
    monkeypatch.setattr(acceleration, "_liger", lambda *_, rope, **__: told.append(rope))
    monkeypatch.setattr(acceleration, "keep_products", lambda _, rank: told.append(rank))
    told: list[Any] = []
    network, asked = adapted(llama(), **lora), SimpleNamespace(gradient_checkpointing=True)
    run = run_on_a_gpu(fields)
    fit = FitFacts(predicted_bytes=1, micro_batch_size=1, gradient_checkpointing="Selective", kept_layers=kept)

    acceleration.accelerate(network, asked, Compute("cuda", torch.bfloat16), run, fit, tmp_path)

    assert asked.gradient_checkpointing == (checkpointed is not None)
    assert told == ([16, False] if checkpointed == "Selective" else [True])
    wide: list[torch.Tensor] = []
    network.train()
    with torch.autograd.graph.saved_tensors_hooks(partial(noted, wide), lambda t: t):
        loss_and_gradients(network)
    shape = (IDS.numel(), SHAPE["intermediate_size"])
    assert checkpointed or sum(t.shape == shape for t in wide) == 2 * (kept or 0)
