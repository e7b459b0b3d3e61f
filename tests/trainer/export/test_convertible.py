"""What llama.cpp's converter says of a model before it is trained, of a skeleton of what merge would write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.families import configuration
from tests.trainer.pods import need_llama_cpp
from transformers import AutoTokenizer

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pod import ENV_LLAMA_CPP
from finetune_trainer.export import convertible, llamacpp
from finetune_trainer.failures import StepFailed


@pytest.fixture(scope="module", autouse=True)
def _converter() -> None:
    need_llama_cpp("convert_hf_to_gguf.py")


@pytest.fixture
def folder(tmp_path: Path, smollm: Path) -> Path:
    """SmolLM2 without its weights, as a store on S3 gives it to prepare."""
    shutil.copytree(smollm, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "model"


def refusal(folder: Path, scratch: Path) -> str:
    with pytest.raises(StepFailed) as caught:
        convertible.check(folder, scratch, ["Q8_0"])
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_CONFIG, "ModelNotConvertible")
    return caught.value.message


def test_a_known_model_passes(folder: Path, tmp_path: Path) -> None:
    convertible.check(folder, tmp_path, ["Q8_0"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "skeleton"]


def test_pain_16_a_tokenizer_that_llama_cpp_does_not_know_is_refused_before_training(tiny_model: Path, tmp_path: Path) -> None:
    assert "pre-tokenizer was not recognized" in refusal(tiny_model, tmp_path)


def test_an_unknown_architecture_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    configuration("opt").save_pretrained(tmp_path / "opt")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "opt")
    assert "(Model OPTForCausalLM is not supported): take out the GGUF artifacts" in refusal(tmp_path / "opt", tmp_path)


def test_a_file_that_the_converter_wants_is_named(tmp_path: Path, folder: Path) -> None:
    """Only converting showed it, and only after training: sentencepiece's file, which transformers itself does without."""
    configuration("gemma").save_pretrained(folder)
    assert "(FileNotFoundError: File not found: tokenizer.model)" in refusal(folder, tmp_path)


def test_layers_of_another_width_than_the_converter_writes_are_refused(tmp_path: Path, folder: Path) -> None:
    """The file was written, and llama.cpp could not load it: after training."""
    configuration("phi", intermediate_size=96).save_pretrained(folder)
    assert "takes each feed-forward layer of this family for 256 wide, not 96" in refusal(folder, tmp_path)


def test_a_fault_of_the_converter_is_left_to_the_quantize_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "convert_hf_to_gguf.py").write_text("import nothing_of_this_name")
    monkeypatch.setenv(ENV_LLAMA_CPP, str(tmp_path))
    convertible.check(folder, tmp_path, ["Q8_0"])
    monkeypatch.setenv(ENV_LLAMA_CPP, str(tmp_path / "nowhere"))
    convertible.check(folder, tmp_path, ["Q8_0"])


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mixtral", "sliding_window": 4096}, 4096),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, None),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True}, 4096),
        ({"model_type": "phi3", "sliding_window": 2047}, None),  # whose file has it
        ({"model_type": "llama"}, None),
    ],
)
def test_windows_that_llama_cpp_leaves_out_are_known(config: dict[str, Any], window: int | None) -> None:
    assert llamacpp.window_left_out(config) == window
