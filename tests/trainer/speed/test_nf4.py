"""Our kernel expands NF4 to bitsandbytes' bits. Triton interprets it here: no CPU runs it otherwise."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from bitsandbytes.functional import quantize_4bit

from finetune_trainer.speed import nf4
from finetune_trainer.speed.fused_lora import _absmax


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    module = importlib.import_module("finetune_trainer.speed.nf4_triton")
    yield importlib.reload(module)
    monkeypatch.undo()
    importlib.reload(module)


class Layer:
    """What `_absmax` and `expanded` read of a layer."""

    def __init__(self, weight: torch.Tensor, blocksize: int, *, nested: bool) -> None:
        packed, state = quantize_4bit(weight, blocksize=blocksize, compress_statistics=nested, quant_type="nf4")
        frozen: Any = torch.nn.Parameter(packed, requires_grad=False)
        frozen.quant_state = state
        self.weight = frozen


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("shape", "blocksize"), [((64, 64), 64), ((40, 72), 64), ((8, 512), 128)])
@pytest.mark.parametrize("nested", [True, False])
def test_the_kernel_gives_bitsandbytes_bits(dtype: torch.dtype, shape: tuple[int, int], blocksize: int, nested: bool) -> None:
    torch.manual_seed(0)
    layer: Any = Layer(torch.randn(shape), blocksize, nested=nested)
    scales = _absmax(layer)
    assert scales is not None
    plain = nf4.expanded(layer.weight, scales, dtype)
    found = nf4.by_triton(layer.weight.data, scales, layer.weight.quant_state, dtype)
    assert found.dtype is dtype
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
