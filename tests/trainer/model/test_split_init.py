"""PiSSA and OLoRA: the adapter begins as a part of the weights, and what is saved fits the base model all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.export.test_merge import TRAINING, divergence_from_trained, merged_folder
from tests.trainer.training.test_train import LORA, check_resumed, committed

from finetune_trainer.contract import pod
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Method, Training
from finetune_trainer.model import adapters, compute, loading

MakeRun = Callable[..., RunConfig]
INITS = ["PiSSA", "OLoRA"]


@pytest.mark.parametrize("init", INITS)
def test_it_begins_as_the_base_model_with_a_part_of_its_weights(tiny_model: Path, init: str) -> None:
    row = torch.tensor([[4, 5, 6]])
    network = loading.load_base(tiny_model, Method.LORA, compute.Compute("cpu", torch.float32))
    before = network.model.layers[0].self_attn.q_proj.weight.detach().clone()
    with torch.no_grad():
        expected = network(input_ids=row).logits
        adapted = adapters.add_adapters(network, Training.model_validate(LORA | {"lora": {"init": init, "rank": 8}}))
        torch.testing.assert_close(adapted(input_ids=row).logits, expected, rtol=1e-4, atol=1e-5)
    layer = adapted.get_base_model().model.layers[0].self_attn.q_proj
    part = layer.get_delta_weight("default").detach()
    assert float(part.norm()) > 0.1 * float(before.norm())
    torch.testing.assert_close(layer.get_base_layer().weight + part, before)
    if init == "PiSSA":
        strongest = torch.linalg.svdvals(before)
        torch.testing.assert_close(torch.linalg.svdvals(part)[:8], strongest[:8], rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("init", "precision", "lora"), [("PiSSA", "FP32", {"rankStabilized": True}), ("PiSSA", "BF16", {}), ("OLoRA", "FP32", {})]
)
def test_what_is_saved_is_an_adapter_of_the_base_model(
    make_run: MakeRun, tmp_path: Path, init: str, precision: str, lora: dict[str, Any]
) -> None:
    """The merge holds it, on the base as it was fetched, against the loss and the answers of the training."""
    settings = {"method": "LoRA", "precision": precision, "learningRate": 1e-3, "lora": {"init": init, "rank": 4} | lora}
    run = make_run(training=TRAINING | settings)
    folder = merged_folder(run, tmp_path)
    assert 0 <= divergence_from_trained(run, tmp_path, folder) <= 1e-4
    adapter = committed(run, tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    assert "--max-lora-rank 8`" in (adapter / "README.md").read_text()


@pytest.mark.parametrize("init", INITS)
def test_pain_20_resumed_run_equals_the_unbroken_one(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str
) -> None:
    monkeypatch.setenv(pod.ENV_GRACE_SECONDS, "120")
    settings = LORA | {"maxSteps": 4, "learningRate": 1e-3, "lora": {"init": init, "dropout": 0.1}}
    check_resumed(make_run, tmp_path, settings, after=2)
