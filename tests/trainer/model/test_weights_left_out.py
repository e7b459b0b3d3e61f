"""Weights in a model's files that its configuration has no place for: none goes in silence, and what is none is no noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.trainer.families import FAMILIES, save

from finetune_trainer.failures import StepFailed
from finetune_trainer.model.complete import check_complete
from finetune_trainer.model.weights import WHOLE, header

HARMLESS = (
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.embeddings.position_ids",
    "transformer.h.0.attn.bias",
    "transformer.h.0.attn.masked_bias",
    "vision_tower.encoder.layers.0.weight",
    "model.vision_model.patch_embedding.weight",
    "visual.blocks.0.weight",
    "multi_modal_projector.linear.weight",
    "model.mm_projector.0.weight",
    "audio_tower.layers.0.weight",
    "model.embed_vision.weight",
)
LOST = ("v_head.weight", "mtp.layers.0.weight", "medusa.0.weight", "model.layers.2.mlp.up_proj.weight", "model.audition.weight")
SMALL, LARGE = [1, 8], [512, 512]


def held(model: Path, **more: Any) -> dict[str, Any]:
    return dict(header(model / WHOLE)) | more


def tensor(shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}


@pytest.mark.parametrize("name", HARMLESS)
def test_tables_and_parts_that_text_never_reaches_are_no_noise(tiny_model: Path, name: str) -> None:
    assert check_complete(tiny_model, held(tiny_model, **{name: tensor(LARGE)}), "spec.model") is None


@pytest.mark.parametrize("name", LOST)
def test_a_little_that_would_be_lost_is_told(tiny_model: Path, name: str) -> None:
    said = check_complete(tiny_model, held(tiny_model, **{name: tensor(SMALL)}), "spec.model") or ""
    assert said.startswith(f"spec.model: 1 of the weights in its files, such as {name}, have no place in LlamaForCausalLM")


@pytest.mark.parametrize("name", LOST)
def test_much_that_would_be_lost_is_refused(tiny_model: Path, name: str) -> None:
    with pytest.raises(
        StepFailed, match=r"such as .*: \d\d% of all its numbers would be lost; take the configuration"
    ) as caught:
        check_complete(tiny_model, held(tiny_model, **{name: tensor(LARGE)}), "spec.training.distillation.teacher")
    assert caught.value.reason == "ModelDamaged"
    assert caught.value.message.startswith("spec.training.distillation.teacher: 1 of the weights in its files, such as ")


def test_a_model_that_is_whole_is_told_nothing_of(tiny_model: Path) -> None:
    assert check_complete(tiny_model, held(tiny_model), "spec.model") is None


@pytest.mark.filterwarnings("ignore")  # of each family's own configuration
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saved_of_a_family_is_whole_and_leaves_nothing_out(family: str, tmp_path: Path) -> None:
    assert check_complete(tmp_path, held(save(family, tmp_path)), "spec.model") is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["gemma2", "mixtral", "gpt2", "deepseek_v3"])
def test_what_lacks_in_a_family_is_found_under_the_names_of_its_files(family: str, tmp_path: Path) -> None:
    """transformers has other names in memory than in files for some, and layers of experts in one tensor."""
    saved = held(save(family, tmp_path))
    lost = next(name for name in saved if ".1." in name)
    with pytest.raises(StepFailed, match=r"spec\.model: \d+ of the weights of .* are not in its files") as caught:
        check_complete(tmp_path, {name: tensor for name, tensor in saved.items() if name != lost}, "spec.model")
    assert caught.value.reason == "ModelDamaged"
