"""Selective checkpointing: the same gradients to the bit, and no product over a whole hidden state is computed twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.trainer.counting import Count
from tests.trainer.speed.test_acceleration import adapted, in_4_bits, llama, loss_and_gradients, qwen_with_biases

from finetune_trainer.speed.activations import keep_products

RANK = 4  # of `adapted`
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"


def step(network: Any) -> tuple[dict[str, torch.Tensor], Counter[str]]:
    """Gradients of one training step, and its operators' calls."""
    torch.manual_seed(1)  # of dropout
    network.train()
    with Count() as count:
        _, gradients = loss_and_gradients(network)
    return gradients, count.calls


def products(calls: Counter[str]) -> int:
    return calls["aten::mm"] + calls["aten::addmm"] + calls["bitsandbytes::gemm_4bit"]


@pytest.mark.parametrize(
    ("make", "rank", "repeated"),  # of the products those of B, seven in each of two layers
    [
        (llama, 0, 0),
        (lambda: adapted(llama()), RANK, 14),
        (lambda: adapted(qwen_with_biases()), RANK, 14),
        (lambda: adapted(llama(), lora_dropout=0.1), RANK, 14),
        (lambda: adapted(llama(), use_dora=True), RANK, 28),
        (lambda: adapted(in_4_bits(llama(), "nf4", nested=True)), RANK, 14),
    ],
    ids=["all weights", "LoRA", "biases", "dropout", "DoRA", "QLoRA"],
)
def test_selective_checkpointing_repeats_nothing_that_takes_time(make: Callable[[], Any], rank: int, repeated: int) -> None:
    network = make()
    if rank:
        network.enable_input_require_grads()
    plain, once = step(network)
    network.gradient_checkpointing_enable({"use_reentrant": False})
    _, twice = step(network)
    keep_products(network, rank)
    network.gradient_checkpointing_enable()

    selective, calls = step(network)

    assert plain.keys() == selective.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, selective[name]), name
    assert calls[ATTENTION] == once[ATTENTION] < twice[ATTENTION]
    assert calls["aten::silu"] == twice["aten::silu"] > once["aten::silu"]
    assert products(once) <= products(calls) <= products(once) + repeated < products(twice)
