"""A saved adapter names its base as plain PEFT finds it: a repository of the hub and its commit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM

from finetune_trainer.contract.training import Method, Training
from finetune_trainer.model import adapters, compute, loading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def saved_adapter(tiny_model: Path, folder: Path, uri: str) -> torch.Tensor:
    """Save an adapter that changes what the model says; returns its logits of one row."""
    network = loading.load_base(tiny_model, Method.LORA, compute.Compute("cpu", torch.float32))
    adapted = adapters.add_adapters(network, Training(method=Method.LORA))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        logits: torch.Tensor = adapted(input_ids=torch.tensor([[4, 5, 6]])).logits
    adapted.save_pretrained(folder)
    adapters.name_base(folder, uri, COMMIT)
    return logits


def test_plain_peft_loads_base_and_adapter_by_the_adapters_own_word(tiny_model: Path, tmp_path: Path) -> None:
    """The hub's cache holds the one commit that was trained on; other revisions aren't there."""
    expected = saved_adapter(tiny_model, tmp_path / "adapter", "hf://org/tiny@v1")
    shutil.copytree(tiny_model, tmp_path / "hub/models--org--tiny/snapshots" / COMMIT)
    loaded = AutoPeftModelForCausalLM.from_pretrained(
        str(tmp_path / "adapter"), cache_dir=str(tmp_path / "hub"), local_files_only=True, dtype=torch.float32
    )
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=torch.tensor([[4, 5, 6]])).logits, expected)


def test_a_base_that_peft_can_not_fetch_is_named_for_people(tiny_model: Path, tmp_path: Path) -> None:
    saved_adapter(tiny_model, tmp_path, "s3://models/tiny")
    settings = json.loads((tmp_path / adapters.SETTINGS).read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("s3://models/tiny", None)
