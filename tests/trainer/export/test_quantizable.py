"""What llm-compressor and bitsandbytes can't quantize is refused of the outline, as docs/architectures.md has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.trainer.families import configuration

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.formats import Quantization
from finetune_trainer.export import quantizable
from finetune_trainer.failures import StepFailed

REFUSED: dict[tuple[str, Quantization], str] = {
    ("gpt2", "FP8"): "FP8 quantizes linear layers, and GPT2LMHeadModel has none",
    ("gpt2", "NF4"): "NF4 quantizes linear layers, and GPT2LMHeadModel has none",
    ("mixtral", "NF4"): "NF4 leaves the experts of MixtralForCausalLM in 16 bits",
    ("phi", "AWQ"): "llm-compressor can't make AWQ of PhiForCausalLM, whose layers it doesn't know; take W4A16",
    ("deepseek_v3", "AWQ"): "llm-compressor can't make AWQ of DeepseekV3ForCausalLM",
}


def check(tmp_path: Path, family: str, quantization: Quantization, **more: int) -> None:
    configuration(family, **more).save_pretrained(tmp_path)
    quantizable.check(tmp_path, tmp_path, [quantization])


@pytest.mark.parametrize(("family", "quantization"), REFUSED)
def test_what_would_fail_or_quantize_nothing_after_training(tmp_path: Path, family: str, quantization: Quantization) -> None:
    with pytest.raises(StepFailed, match=REFUSED[family, quantization]) as caught:
        check(tmp_path, family, quantization, vocab_size=64)
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_CONFIG, "ModelNotConvertible")


@pytest.mark.parametrize("quantization", ["FP8", "W4A16", "AWQ", "NF4"])
def test_what_can_be_quantized_is_let_through(tmp_path: Path, quantization: Quantization) -> None:
    check(tmp_path, "mistral", quantization)


def test_experts_in_one_tensor_have_groups_too(tmp_path: Path) -> None:
    check(tmp_path, "qwen3_moe", "W4A16", moe_intermediate_size=32)
    with pytest.raises(StepFailed, match=r"rows of a multiple of 32 values, and this model's have \[48, 64, 96\]; take FP8"):
        check(tmp_path, "qwen3_moe", "W4A16", moe_intermediate_size=48)


def test_groups_divide_every_row() -> None:
    def network(*rows: int) -> torch.nn.Module:
        layers = {f"layer{i}": torch.nn.Linear(n, 2) for i, n in enumerate(rows)}
        return torch.nn.ModuleDict(layers | {"lm_head": torch.nn.Linear(3, 2)})

    assert quantizable.group_size(network(256, 512)) == 128
    assert quantizable.group_size(network(576, 1536)) == 64
    with pytest.raises(StepFailed, match=r"rows of a multiple of 32 values, and this model's have \[100, 256\]; take FP8"):
        quantizable.group_size(network(100, 256))
