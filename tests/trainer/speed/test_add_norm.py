"""Sums of hidden states and the norms behind them, at once: what layers compute one after the other."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from tests.trainer.speed.test_acceleration import SHAPE, adapted, llama, loss_and_gradients, run_on_a_gpu
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from finetune_trainer.contract.reports import FitFacts
from finetune_trainer.model.compute import Compute
from finetune_trainer.speed import acceleration, add_norm
from finetune_trainer.speed.add_norm import AddNorm, join


def layers_of(network: Any) -> list[nn.Module]:
    return [*network.get_base_model().model.layers]


def qwen3() -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16))


@pytest.mark.parametrize("make", [llama, qwen3])
@pytest.mark.parametrize("training", [True, False])
def test_a_network_of_joined_layers_has_the_same_loss_and_gradients(make: Any, training: bool) -> None:
    network = adapted(make()).train(training)
    for name, weight in network.named_parameters():
        if "norm" in name:
            nn.init.normal_(weight, 1, 0.2)
    loss, gradients = loss_and_gradients(network)
    assert join(layers_of(network))
    calls: list[Any] = []
    for layer in layers_of(network)[1:]:
        layer.get_submodule("input_layernorm").register_forward_hook(lambda *_: calls.append(1))
    found_loss, found = loss_and_gradients(network)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=f"{{}} in {name}".format)
    assert not calls, "the layer before has done what this norm does"


def test_a_layer_that_is_asked_by_itself_norms_its_own_input() -> None:
    """Layers that are computed again ask so, and the first of a record."""
    network = adapted(llama())
    first, second = layers_of(network)
    hidden = torch.randn(1, 16, 64)
    angles = network.get_base_model().model.rotary_emb(hidden, torch.arange(16)[None])
    wanted = second(hidden, position_embeddings=angles)
    assert join([first, second])
    first(torch.randn(1, 16, 64), position_embeddings=angles)
    torch.testing.assert_close(second(hidden, position_embeddings=angles), wanted)


def test_llama_s_own_layers_add_and_norm_at_once_beside_liger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Liger puts a norm of its own in the place of the class that layers' norms are held against."""
    for name in ("LlamaRMSNorm", "apply_rotary_pos_emb"):
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))  # as it was, afterwards
    network = adapted(llama())
    fit = FitFacts(predicted_bytes=1, micro_batch_size=8, gradient_checkpointing="Off")
    asked = SimpleNamespace(gradient_checkpointing=False)
    acceleration.accelerate(network, asked, Compute("cuda", torch.bfloat16), run_on_a_gpu({}), fit, tmp_path)
    assert all("forward" in vars(layer) for layer in network.get_base_model().model.layers)


def gemma() -> Any:
    return GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=16))


def phi3() -> Any:
    return Phi3ForCausalLM(Phi3Config(**SHAPE, pad_token_id=0))


@pytest.mark.parametrize("make", [gemma, phi3])
def test_layers_and_norms_that_are_not_llama_s_stay_as_they_are(make: Any) -> None:
    """Gemma adds one to its norms' weights, Phi-3 drops some of what it adds."""
    layers = layers_of(adapted(make()))
    assert not join(layers)
    assert all("forward" not in vars(layer) for layer in layers)


def test_norms_that_train_are_left_alone() -> None:
    layers = layers_of(adapted(llama()))
    layers[1].post_attention_layernorm.weight.requires_grad_(True)  # type: ignore[union-attr]
    assert not join(layers)
    assert not join([])


def assert_right(rows: int, width: int) -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(width, 1e-5).requires_grad_(False)
    nn.init.normal_(norm.weight, 1, 0.2)
    x, more, of_sum, given = (torch.randn(1, rows, width, requires_grad=i < 2) for i in range(4))
    both = x + more
    wanted = (both, norm(both))
    gradients = torch.autograd.grad(wanted, [x, more], (of_sum, given))
    found: tuple[Tensor, ...] = AddNorm.apply(x, more, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, [x, more], (of_sum, given)), gradients)


def test_both_directions_are_those_of_a_sum_and_its_norm() -> None:
    assert_right(5, 48)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton.language, "sum", triton.jit(triton.language.sum.fn))  # made when it was imported, for GPUs
    module = importlib.import_module("finetune_trainer.speed.add_norm_triton")
    importlib.reload(module)
    monkeypatch.setattr(add_norm, "on_gpu", lambda _: True)
    yield
    monkeypatch.undo()
    importlib.reload(module)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("width", [64, 40])
def test_kernels_compute_the_same(width: int) -> None:
    assert_right(3, width)
