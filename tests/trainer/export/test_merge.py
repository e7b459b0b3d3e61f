"""The merged model is the trained one: whatever the method, whatever the base it was merged into."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.entries import context, prepare

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Method
from finetune_trainer.export import proof
from finetune_trainer.failures import StepFailed
from finetune_trainer.stages import merge, train

MakeRun = Callable[..., RunConfig]
TRAINING = {
    "method": "QLoRA",
    "precision": "FP32",
    "maxSteps": 8,
    "globalBatchSize": 4,
    "maxLength": 128,
    "learningRate": 1e-2,
}


def merged_folder(run: RunConfig, tmp_path: Path) -> Path:
    """Train and merge; returns the committed folder."""
    prepare(run, tmp_path)
    train.run(context(run, "train", tmp_path))
    result = merge.run(context(run, "merge", tmp_path))
    assert result.artifact is not None
    assert (result.artifact.name, result.artifact.format) == ("merged", "Safetensors")
    return context(run, "evaluate", tmp_path).inputs.output("merge")[1]


def divergence_from_trained(run: RunConfig, tmp_path: Path, merged: Path) -> float:
    """KL divergence over a test row between the model as it was trained, loaded by PEFT alone, and the merged folder."""
    import torch
    from peft import PeftModel

    from finetune_trainer.model.compute import Compute
    from finetune_trainer.model.loading import load_base

    at = context(run, "merge", tmp_path)
    cpu = Compute("cpu", torch.float32)
    _, trained = at.inputs.output("train")
    if run.training.method is Method.FULL:
        reference = load_base(trained, Method.LORA, cpu)
    else:
        base = load_base(at.inputs.model()[1], run.training.method, cpu, quantization=run.training.quantization)
        reference = PeftModel.from_pretrained(base, str(trained))
    row = json.loads((at.inputs.data()[1] / "test.jsonl").read_text().splitlines()[0])
    tokens = torch.tensor([row["input_ids"]])
    with torch.no_grad():
        expected, found = (m.eval()(input_ids=tokens).logits[0] for m in (reference, load_base(merged, Method.LORA, cpu)))
    return proof.divergence(expected, found)


@pytest.mark.parametrize(
    ("method", "quantization", "base", "limit"),
    [  # BF16 rounding is all that differs, but for a base that the adapter wasn't trained on
        ("QLoRA", {}, "Dequantized", 1e-4),
        ("QLoRA", {"doubleQuantization": False}, "Dequantized", 1e-4),
        ("QLoRA", {"type": "FP4"}, "Dequantized", 1e-4),
        ("QLoRA", {"bits": 8}, "Dequantized", 5e-7),  # 8e-7 from the original base
        ("LoRA", {}, "Dequantized", 1e-4),
        ("LoRA", {}, "Original", 1e-4),
        ("Full", {}, "Dequantized", 1e-9),
        ("QLoRA", {}, "Original", 0.5),
        ("QLoRA", {"type": "FP4", "doubleQuantization": False}, "Original", 0.5),
        ("QLoRA", {"bits": 8}, "Original", 1e-2),  # 8 bits are nearer to the original
    ],
)
def test_merged_answers_as_the_trained_model(
    make_run: MakeRun, tmp_path: Path, method: str, quantization: dict[str, Any], base: str, limit: float
) -> None:
    rate = 1e-3 if method == "Full" else 1e-2
    training = TRAINING | {"method": method, "learningRate": rate, "quantization": quantization}
    run = make_run(training=training, mergeBase=base)
    folder = merged_folder(run, tmp_path)
    value = divergence_from_trained(run, tmp_path, folder)
    assert 0 <= value <= limit
    if (method, base) == ("QLoRA", "Original"):
        assert value > (5e-7 if "bits" in quantization else 1e-6)  # it is another base, and the test can tell


@pytest.mark.parametrize(
    ("lora", "bits"),
    [
        ({"dora": True}, 4),
        ({"dora": True}, 8),
        ({"rankStabilized": True, "rank": 4}, 4),
        ({"init": "Orthogonal"}, 4),
        ({"init": "Orthogonal", "dora": True}, 8),
    ],
    ids=["dora", "dora, 8 bits", "rankStabilized", "orthogonal", "orthogonal, dora, 8 bits"],
)
def test_variants_of_lora_are_trained_and_merged_as_such(
    make_run: MakeRun, tmp_path: Path, lora: dict[str, Any], bits: int
) -> None:
    from safetensors.torch import load_file

    run = make_run(training=TRAINING | {"lora": lora, "quantization": {"bits": bits}})
    folder = merged_folder(run, tmp_path)
    assert 0 <= divergence_from_trained(run, tmp_path, folder) <= 1e-4
    _, adapter = context(run, "merge", tmp_path).inputs.output("train")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"]) == ("dora" in lora, "rankStabilized" in lora)
    lengths = {n: t for n, t in load_file(adapter / "adapter_model.safetensors").items() if "magnitude" in n}
    assert bool(lengths) == ("dora" in lora)


def test_pain_15_lengths_of_dora_move_and_stay_in_float32(make_run: MakeRun, tmp_path: Path) -> None:
    """In BF16 they would stay where they were, and the run would be plain LoRA; check_trained would say so."""
    import torch
    from safetensors.torch import load_file

    run = make_run(training=TRAINING | {"precision": "BF16", "lora": {"dora": True}})
    prepare(run, tmp_path)
    train.run(context(run, "train", tmp_path))
    _, adapter = context(run, "merge", tmp_path).inputs.output("train")
    weights = load_file(adapter / "adapter_model.safetensors")
    assert {t.dtype for n, t in weights.items() if "magnitude" in n} == {torch.float32}
    assert {t.dtype for n, t in weights.items() if "lora_A" in n} == {torch.bfloat16}


def test_merged_folder_can_be_served(make_run: MakeRun, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    run = make_run(training=TRAINING | {"lora": {"targets": ["q_proj", "v_proj"]}})
    folder = merged_folder(run, tmp_path)
    names = {file.name for file in folder.iterdir()}
    wanted = {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"}
    assert wanted | {"README.md"} <= names
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token != tokenizer.eos_token
    assert divergence_from_trained(run, tmp_path, folder) <= 1e-4  # also where most of the 4-bit layers have no adapter


def test_the_file_of_sentencepiece_comes_along_for_converters(make_run: MakeRun, tmp_path: Path) -> None:
    models = tmp_path / "mounts/claims/models"
    shutil.copytree(models / "tiny", models / "pieces")
    (models / "pieces/tokenizer.model").write_bytes(b"pieces")
    folder = merged_folder(make_run(training=TRAINING, model={"uri": "pvc://models/pieces"}), tmp_path)
    assert (folder / "tokenizer.model").read_bytes() == b"pieces"


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_pain_13_tied_embeddings_are_tied_when_read_back(make_run: MakeRun, tmp_path: Path, method: str) -> None:
    import torch

    from finetune_trainer.model.compute import Compute
    from finetune_trainer.model.loading import load_base

    folder = merged_folder(make_run(training=TRAINING | {"method": method, "learningRate": 1e-3}), tmp_path)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    network = load_base(folder, Method.LORA, Compute("cpu", torch.float32))
    head, embedding = network.get_output_embeddings().weight, network.get_input_embeddings().weight
    assert head.data_ptr() == embedding.data_ptr()
    assert float(embedding.std()) > 1e-3  # read from the file, not made anew as zeros


def test_a_broken_merge_is_not_committed(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(training=TRAINING)
    prepare(run, tmp_path)
    train.run(context(run, "train", tmp_path))
    whole = merge._merge

    def half(*arguments: Any) -> Any:
        network = whole(*arguments)
        network.model.layers[0].self_attn.o_proj.weight.data.zero_()
        return network

    monkeypatch.setattr(merge, "_merge", half)
    with pytest.raises(StepFailed, match="answers unlike the trained one") as failed:
        merge.run(context(run, "merge", tmp_path))
    assert failed.value.exit_code is ExitCode.VERIFICATION_FAILED
    assert context(run, "merge", tmp_path).committed() is None
