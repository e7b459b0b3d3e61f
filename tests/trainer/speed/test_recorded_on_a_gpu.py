"""On a GPU: layers recorded as CUDA graphs have the gradients of plain ones, and NF4 is expanded to bitsandbytes' bits.

Flash attention's backward pass adds to the gradient of queries from blocks of 128 keys, in whatever order they come: with
longer documents two plain passes differ as well, and recorded layers may differ by that much. cuDNN's differed by nothing here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from tests.trainer.speed.test_acceleration import adapted
from tests.trainer.speed.test_recorded_layers import on_a_line
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_trainer.data.tokenized import IGNORED
from finetune_trainer.speed import nf4
from finetune_trainer.speed.acceleration import fused_layers
from finetune_trainer.speed.attention import by_gpu, register
from finetune_trainer.speed.fixed_lines import Line
from finetune_trainer.speed.fused_lora import fuse, projection
from finetune_trainer.speed.recorded_layers import CudaGraphs, RecordedLayers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs are a GPU's")
LAYERS, LINE = 4, Line(tokens=4096, row=2048)
SHAPE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
SHORT, LONG = (128,) * 28 + (100, 60), (2048, 1500, 400)


def in_nf4(model: nn.Module) -> nn.Module:
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and name != "lm_head":
                small = Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16)
                small.weight = Params4bit(layer.weight.data.cpu(), quant_type="nf4", compress_statistics=True)
                setattr(parent, name, small.to("cuda"))
    return model


def network() -> Any:
    torch.manual_seed(0)
    plain: nn.Module = LlamaForCausalLM(LlamaConfig(**(SHAPE | {"attn_implementation": register(by_gpu)})))
    model = adapted(in_nf4(plain.to("cuda", torch.bfloat16))).to("cuda", torch.bfloat16)
    assert fuse(model) == 7 * LAYERS
    return model.train()


def gradients(model: Any, lengths: tuple[int, ...]) -> tuple[float, Tensor]:
    """The loss over one line, and the gradients of all adapters end to end."""
    line = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in on_a_line(lengths).items()}
    line = LINE.filled(line, IGNORED)
    model.zero_grad()
    logits = model(**{k: v for k, v in line.items() if k != "labels"}, use_cache=False).logits
    loss = nn.functional.cross_entropy(logits[0, :-1].float(), line["labels"][0, 1:])
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten().float() for p in model.parameters() if p.requires_grad])


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_recorded_gradients_are_plain_ones() -> None:
    model = network()
    plain = {lengths: [gradients(model, lengths) for _ in range(3)] for lengths in (SHORT, LONG)}
    layers = RecordedLayers(fused_layers(model, 7 * LAYERS), LINE, CudaGraphs())
    gradients(model, SHORT)  # is watched
    found = {lengths: [gradients(model, lengths) for _ in range(3)] for lengths in (SHORT, LONG)}
    assert len(layers._records) == 2

    noise = max(apart(one[1], plain[LONG][0][1]) for one in plain[LONG][1:])
    between = max(apart(one[1], plain[LONG][0][1]) for one in found[LONG])
    print(f"documents of up to 2,048 tokens: plain passes are {noise:.5f} apart, recorded ones from plain {between:.5f}")
    for lengths in (SHORT, LONG):
        assert {loss for loss, _ in found[lengths]} == {loss for loss, _ in plain[lengths]}
    for _, gradient in (*plain[SHORT][1:], *found[SHORT]):
        assert torch.equal(gradient, plain[SHORT][0][1])
    assert between <= 1.5 * noise


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nf4_is_expanded_to_bitsandbytes_bits(dtype: torch.dtype) -> None:
    for layer in network().modules():
        found = projection(layer) if hasattr(layer, "lora_A") else None
        if found is not None and found.absmax is not None:
            weight: Any = found.base.weight
            state = weight.quant_state
            plain = torch.ops.bitsandbytes.dequantize_4bit.default(
                weight.data, found.absmax, state.blocksize, state.quant_type, state.shape, dtype
            )
            assert torch.equal(nf4.expanded(weight, found.absmax, dtype), plain)
