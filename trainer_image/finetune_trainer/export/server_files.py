"""What servers and converters read beside the weights, in the names of transformers 5 and of transformers 4.

Version 5 writes rope_parameters where version 4 looks for rope_theta and rope_scaling, and a tokenizer class that version 4
does not have. A server on version 4 then fails, or takes 10 000 for the rotary base and answers a little worse, at no
error at all; llama.cpp's converter misses older names, too. All of them pass over names that they do not know.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from finetune_trainer.contract.adapters import Lora
from finetune_trainer.contract.served_adapters import RANKS, rank_for

TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}  # the same class, by the name that both know
SENTENCEPIECE = "tokenizer.model"  # transformers reads it and does not write it; converters want it of Gemma, Phi 3 and others
# Older names of fields of config.json that converters read, by the kind of model that has them.
OLDER = {
    "gpt2": {"n_ctx": "n_positions"},
    "gpt_neox": {"rotary_pct": "partial_rotary_factor"},
    "cohere2": {"rotary_pct": "partial_rotary_factor"},
}
WHOLE = {"partial_rotary_factor": 1.0}  # what a configuration without the field means


def add_sentencepiece(base: Path, folder: Path) -> None:
    """Copy the tokenizer's file of sentencepiece, where the base model has one, and say which tokens were added to it.

    Converters read those from tokenizer_config.json, where version 5 does not write them; without them the ends of turns of a
    Gemma would be pieces of text.
    """
    if not (base / SENTENCEPIECE).is_file():
        return
    shutil.copyfile(base / SENTENCEPIECE, folder / SENTENCEPIECE)
    written, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if written.is_file() and settings.is_file():
        added = json.loads(written.read_text()).get("added_tokens") or []
        tokens = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added}
        known = json.loads(settings.read_text())
        settings.write_text(json.dumps({"added_tokens_decoder": tokens} | known, indent=2, ensure_ascii=False) + "\n")


def make_readable(folder: Path) -> None:
    """Add the older names to config.json and tokenizer_config.json of a model folder, as far as it has them."""
    for name, change in (("config.json", _config), ("tokenizer_config.json", _tokenizer)):
        file = folder / name
        if file.is_file():
            file.write_text(json.dumps(change(json.loads(file.read_text())), indent=2, ensure_ascii=False) + "\n")


def _config(config: dict[str, Any]) -> dict[str, Any]:
    rotary = config.get("rope_parameters") or {}
    added = {"torch_dtype": config.get("dtype")} | {k: rotary.get(k) for k in ("rope_theta", "partial_rotary_factor")}
    if rotary.get("rope_type", "default") != "default":
        added["rope_scaling"] = {k: v for k, v in rotary.items() if k not in added}
    whole = config | {k: v for k, v in added.items() if v is not None}
    older = OLDER.get(str(config.get("model_type")), {})
    return {name: (WHOLE | whole).get(known) for name, known in older.items()} | whole


def _tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    known = {k: v for k, v in config.items() if k not in ("is_local", "local_files_only")}  # of the machine that wrote it
    return known | {"tokenizer_class": TOKENIZER_CLASSES.get(config.get("tokenizer_class", ""), config.get("tokenizer_class"))}


def for_vllm(lora: Lora) -> str:
    """How vLLM takes such an adapter, or why it does not."""
    fits = rank_for(lora.saved_rank)
    if lora.dora:
        return "not as an adapter, as vLLM has no DoRA: serve the merged model"
    if lora.modules_to_save:
        return "not as an adapter, as vLLM takes none with modules that were trained whole: serve the merged model"
    if fits is None:
        return f"not as an adapter, as vLLM takes ranks up to {RANKS[-1]}: serve the merged model"
    return f"`--enable-lora --max-lora-rank {fits}`"
