"""Pain 19: servers that refuse what was trained, or read it as another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import save_tiny_llama, train_tokenizer

from finetune_trainer.contract.adapters import Lora
from finetune_trainer.export.server_files import add_sentencepiece, for_vllm, make_readable


def written(folder: Path, **fields: Any) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps(fields))
    make_readable(folder)
    read: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return read


def test_pain_19_older_servers_find_the_names_that_they_know(tmp_path: Path) -> None:
    rotary = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    config = written(tmp_path, dtype="bfloat16", rope_parameters=rotary)
    assert config["rope_parameters"] == rotary
    assert (config["torch_dtype"], config["rope_theta"]) == ("bfloat16", 5e5)
    assert config["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}

    plain = written(tmp_path, rope_parameters={"rope_theta": 1e5, "rope_type": "default", "partial_rotary_factor": 0.5})
    assert (plain["rope_theta"], plain["partial_rotary_factor"]) == (1e5, 0.5)
    assert "rope_scaling" not in plain

    by_layer = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert written(tmp_path, rope_parameters=by_layer) == {"rope_parameters": by_layer}


def test_llama_cpp_s_converter_finds_the_names_that_it_knows(tmp_path: Path) -> None:
    """GGUF of these families ended with a KeyError otherwise, after training."""
    assert written(tmp_path, model_type="gpt2", n_positions=512)["n_ctx"] == 512
    rotary = {"rope_theta": 1e4, "partial_rotary_factor": 0.25}
    assert written(tmp_path, model_type="gpt_neox", rope_parameters=rotary)["rotary_pct"] == 0.25
    assert written(tmp_path, model_type="cohere2", rope_parameters={"rope_theta": 1e4})["rotary_pct"] == 1.0
    assert written(tmp_path, model_type="cohere2", rotary_pct=0.5)["rotary_pct"] == 0.5


def test_tokens_that_were_added_to_pieces_are_told_where_converters_look_for_them(tmp_path: Path) -> None:
    """GGUF of a Gemma had the ends of its turns as pieces of text otherwise, and was refused after training."""
    from transformers import AutoTokenizer

    base, folder = tmp_path / "base", tmp_path / "merged"
    base.mkdir()
    (base / "tokenizer.model").write_bytes(b"pieces")
    made = train_tokenizer()
    made.save_pretrained(folder)
    add_sentencepiece(base, folder)
    told = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {told[str(made.convert_tokens_to_ids(name))]["special"] for name in ("<|im_start|>", "<|im_end|>")} == {True}
    assert (
        AutoTokenizer.from_pretrained(folder)("<|im_start|>Who?<|im_end|>").input_ids
        == made("<|im_start|>Who?<|im_end|>").input_ids
    )


def test_pain_19_the_pinned_transformers_reads_the_same_model(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    save_tiny_llama(tmp_path, train_tokenizer())
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 123456.0, "rope_type": "linear", "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    before, text = AutoConfig.from_pretrained(tmp_path), "<|im_start|>user\nWho keeps it?<|im_end|>"
    ids = AutoTokenizer.from_pretrained(tmp_path)(text).input_ids
    make_readable(tmp_path)
    after: Any = AutoConfig.from_pretrained(tmp_path)
    assert after.rope_parameters == before.rope_parameters == config["rope_parameters"]
    assert after.dtype == before.dtype
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(text).input_ids == ids
    assert tokenizer.chat_template
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only"} & told.keys()


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        (Lora(rank=1), "--max-lora-rank 1`"),
        (Lora(rank=12), "--max-lora-rank 16`"),
        (Lora(rank=512), "--max-lora-rank 512`"),
        (Lora(rank=12, init="PiSSA"), "--max-lora-rank 32`"),
        (Lora(rank=513), "ranks up to 512: serve the merged model"),
        (Lora(modules_to_save=["lm_head"]), "modules that were trained whole: serve the merged model"),
        (Lora(dora=True), "vLLM has no DoRA: serve the merged model"),
    ],
)
def test_pain_19_an_adapter_says_how_vllm_takes_it(lora: Lora, told: str) -> None:
    assert told in for_vllm(lora)
