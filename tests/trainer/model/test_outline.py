"""What a model's outline tells of it without its weights: what text never reaches, and where its experts and routers are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.families import FAMILIES, configuration, with_vision

from finetune_trainer.contract.adapters import Lora
from finetune_trainer.contract.training import Method, Training
from finetune_trainer.memory.shape import shape_of
from finetune_trainer.model.adapters import add_adapters
from finetune_trainer.model.outline import outline, unreached

OF_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "deepseek_v2", "deepseek_v3")
TOWER = ("model.vision_tower.", "model.multi_modal_projector.")


def folder_of(configuration: Any, folder: Path) -> Path:
    configuration.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # of each family's own configuration
@pytest.mark.parametrize("family", FAMILIES)
def test_text_reaches_all_of_a_model_for_text(family: str, tmp_path: Path) -> None:
    assert unreached(folder_of(configuration(family), tmp_path)) == frozenset()


def test_text_reaches_no_vision_tower_and_all_else(tmp_path: Path) -> None:
    folder = folder_of(with_vision(), tmp_path)
    names = [name for name, _ in outline(folder).named_parameters()]
    assert unreached(folder) == {name for name in names if name.startswith(TOWER)}
    assert 0 < len(unreached(folder)) < len(names)


def adapted(folder: Path, targets: list[str]) -> set[str]:
    """Paths of the modules and parameters that get adapters."""
    training = Training(method=Method.LORA, lora=Lora(targets=targets))
    network = add_adapters(outline(folder), training)
    return {name for name, weight in network.named_parameters() if "lora_" in name and weight.requires_grad}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", OF_EXPERTS)
def test_routers_are_adapted_only_where_they_are_named(family: str, tmp_path: Path) -> None:
    folder = folder_of(configuration(family), tmp_path)
    found = adapted(folder, ["all-linear"])
    assert found
    assert not [name for name in found if {"gate", "router", "shared_expert_gate"} & set(name.split("."))]


def test_a_router_that_is_named_is_adapted(tmp_path: Path) -> None:
    found = adapted(folder_of(configuration("qwen2_moe"), tmp_path), ["q_proj", "shared_expert_gate"])
    assert any("shared_expert_gate" in name for name in found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", OF_EXPERTS)
def test_the_estimate_quantizes_what_bitsandbytes_does(family: str, tmp_path: Path) -> None:
    """Experts are tensors of three dimensions, which stay as they are; counted as quantized they would run out of memory."""
    from torch.nn import Linear

    folder = folder_of(configuration(family), tmp_path)
    network = outline(folder)
    parameters = sum(weight.numel() for weight in network.parameters())
    experts = sum(w.numel() for name, w in network.named_parameters() if "experts" in name and w.ndim == 3)
    linear = sum(m.weight.numel() for n, m in network.named_modules() if isinstance(m, Linear) and not n.endswith("lm_head"))
    shape = shape_of(json.loads((folder / "config.json").read_bytes()), parameters)
    assert shape.experts == experts > 0
    assert shape.linear == pytest.approx(linear, rel=0.15)  # biases of experts are a part of so narrow ones
