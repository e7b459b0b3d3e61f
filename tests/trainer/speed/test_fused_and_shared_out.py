"""The fused path under FSDP: weights and adapters that a rank has whole only while their layer is at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from bitsandbytes.nn import Linear4bit, Params4bit
from tests.trainer.speed.test_acceleration import adapted, llama, loss_and_gradients, qwen_with_biases
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from finetune_trainer.speed.fused_lora import fuse


@pytest.fixture
def alone() -> Iterator[None]:
    """One rank, which shares weights out with nobody, by all of FSDP's machinery."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def in_nf4_of_floats() -> Any:
    """4-bit weights whose bytes lie in float32 numbers, as FSDP needs them."""
    model = llama()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                small = Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32)
                options: dict[str, Any] = {"quant_type": "nf4", "quant_storage": torch.float32, "module": small}
                small.weight = Params4bit(layer.weight.data, compress_statistics=True, **options)
                setattr(parent, name, small.to("cpu"))
    return model


def shared_out(network: Any) -> Any:
    mesh = init_device_mesh("cpu", (1,))
    for layer in network.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def whole(gradients: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in gradients.items()}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("keep", [None, 0])
@pytest.mark.parametrize("make", [llama, qwen_with_biases, in_nf4_of_floats], ids=["dense", "biases", "NF4"])
def test_shared_out_weights_are_fused_with_their_adapters(make: Callable[[], Any], keep: int | None) -> None:
    network = adapted(make())
    loss, gradients = loss_and_gradients(network)
    assert fuse(network, keep=keep) == 14
    network = shared_out(network)
    before = network.get_base_model().model.layers[0].mlp.up_proj.lora_A["default"].weight

    for _ in range(2):  # the second time the layers were put away once
        found, fused = loss_and_gradients(network)
        assert found == pytest.approx(loss, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(whole(fused)[name], gradient, rtol=1e-4, atol=1e-7, msg=f"{{}} in {name}".format)

    assert isinstance(network.get_base_model().model.layers[0], FSDPModule)
    assert hasattr(before, "full_tensor"), "adapters are shared out as well"
