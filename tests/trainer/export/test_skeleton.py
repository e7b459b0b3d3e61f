"""A skeleton has the names and shapes that transformers saves, and takes no room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.families import FAMILIES, save
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_trainer.export import skeleton
from finetune_trainer.export.server_files import make_readable
from finetune_trainer.model.complete import check_complete
from finetune_trainer.model.weights import header

FAST = {"llama", "mixtral", "gpt2"}


def shapes(folder: Path) -> dict[str, list[int]]:
    return {name: tensor["shape"] for name, tensor in header(folder / skeleton.WEIGHTS).items()}


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return found


@pytest.mark.parametrize("family", [pytest.param(f, marks=[] if f in FAST else [pytest.mark.slow]) for f in FAMILIES])
def test_a_skeleton_is_what_is_saved_but_for_the_numbers(family: str, tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    tokenizer.save_pretrained(save(family, tmp_path / "base", **ends))
    check_complete(tmp_path / "base", header(tmp_path / "base" / skeleton.WEIGHTS), "spec.model")  # as published ones are
    made = skeleton.write(tmp_path / "base", tmp_path / "skeleton")
    saved = tmp_path / "saved"
    AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="bfloat16").save_pretrained(saved)
    make_readable(saved)
    assert shapes(made) == shapes(saved)
    assert config(made) == config(saved)
    file = (made / skeleton.WEIGHTS).stat()
    assert file.st_blocks * 512 < file.st_size
