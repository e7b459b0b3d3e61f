"""One copy in 16 bits for all readers of a norm: the same answers, and gradients within that type's rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.trainer.counting import Count
from tests.trainer.speed.test_acceleration import IDS, SHAPE, adapted, llama, loss_and_gradients
from transformers import GPT2Config, GPT2LMHeadModel, PhiConfig, PhiForCausalLM

from finetune_trainer.speed.casts import copy_once


def step(network: Any) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss and gradients of a step under autocast, and how many copies of another type it made."""
    network.train()
    with torch.autocast("cpu", torch.bfloat16), Count() as count:
        loss, gradients = loss_and_gradients(network)
    return loss, gradients, count.calls["aten::_to_copy"]


def test_layers_that_train_whole_make_one_copy_for_all_that_read_it() -> None:
    network = llama()
    loss, gradients, copies = step(network)
    assert copy_once(network) == 2 * SHAPE["num_hidden_layers"]

    found, again, fewer = step(network)

    assert found == loss
    # Of three and of two readers one copy each is left, and so on the way back.
    assert copies - fewer == SHAPE["num_hidden_layers"] * 2 * (2 + 1)
    for name, gradient in gradients.items():
        assert (again[name] - gradient).norm() < 0.01 * gradient.norm(), name


@pytest.mark.parametrize("casts", [True, False])
def test_what_autocast_does_not_copy_stays_as_it_is(casts: bool) -> None:
    network = llama().to(torch.bfloat16) if casts else llama()
    copy_once(network)
    read: list[torch.dtype] = []
    network.model.layers[0].mlp.gate_proj.register_forward_pre_hook(lambda _, given: read.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=casts):
        network(input_ids=IDS, use_cache=False)
    assert read == [torch.bfloat16 if casts else torch.float32]


@pytest.mark.parametrize(
    ("network", "readers"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64)), 0),
        (lambda: PhiForCausalLM(PhiConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)), 1),
        (lambda: adapted(llama()), 0),
    ],
    ids=["products in one", "an MLP without a gate", "adapters, which read it as well"],
)
def test_only_readers_of_one_input_share_a_copy(network: Any, readers: int) -> None:
    assert copy_once(network()) == readers
