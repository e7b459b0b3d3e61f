"""Models as they lie on the hub, with a peculiarity each, are trained, merged, quantized and scored, and know their rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import CHATML, save_tiny_llama, train_tokenizer
from tests.trainer.entries import PAIRS, context, prepare
from tests.trainer.families import with_vision
from transformers import AutoModelForCausalLM

from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.model.weights import INDEX
from finetune_trainer.stages import evaluate, merge, quantize, train
from finetune_trainer.training.trainable import check_trainable

MakeRun = Callable[..., RunConfig]
TRAINING = {"method": "Full", "precision": "FP32", "maxSteps": 30, "globalBatchSize": 8, "maxLength": 128, "learningRate": 3e-3}
NF4 = {"name": "nf4", "format": "BitsAndBytes", "quantization": "NF4"}


def edit(file: Path, **fields: Any) -> None:
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | fields))


def plain(folder: Path) -> None:
    save_tiny_llama(folder, train_tokenizer())


def generation_config_that_contradicts_itself(folder: Path) -> None:
    """Many published ones do, and transformers saves no model with such settings."""
    plain(folder)
    edit(folder / "generation_config.json", do_sample=False, temperature=0.7, top_p=0.9)


def several_named_chat_templates(folder: Path) -> None:
    plain(folder)
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": CHATML + "{# tools #}"}]
    edit(folder / "tokenizer_config.json", chat_template=named)


def a_template_that_processors_keep(folder: Path) -> None:
    plain(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))


def untied_embeddings(folder: Path) -> None:
    save_tiny_llama(folder, train_tokenizer(), tied=False)


def padded_vocabulary(folder: Path) -> None:
    plain(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    network.resize_token_embeddings(576)
    network.save_pretrained(folder)


def several_files(folder: Path) -> None:
    plain(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    network.save_pretrained(folder, max_shard_size="1MB")
    assert (folder / INDEX).is_file()


def pad_is_eos(folder: Path) -> None:
    """The end must be learned all the same, or answers never stop."""
    tokenizer = train_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    save_tiny_llama(folder, tokenizer)


def no_bos(folder: Path) -> None:
    tokenizer = train_tokenizer()
    tokenizer.bos_token = None
    save_tiny_llama(folder, tokenizer)


def left_padding(folder: Path) -> None:
    tokenizer = train_tokenizer()
    tokenizer.padding_side = "left"
    save_tiny_llama(folder, tokenizer)


def vision_tower(folder: Path) -> None:
    """Gemma 3's: text never reaches it, so no part of it can be trained."""
    tokenizer = train_tokenizer()
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(with_vision(**ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


FAST = (generation_config_that_contradicts_itself, several_named_chat_templates, pad_is_eos)
SLOW = (
    vision_tower,
    a_template_that_processors_keep,
    untied_embeddings,
    padded_vocabulary,
    several_files,
    no_bos,
    left_padding,
)
CASES = [*FAST, *(pytest.param(made, marks=pytest.mark.slow) for made in SLOW)]


@pytest.mark.parametrize("made", CASES)
def test_its_rows_are_learned_scored_and_quantized(made: Callable[[Path], None], make_run: MakeRun, tmp_path: Path) -> None:
    folder = tmp_path / "mounts/claims/models/own"
    made(folder)
    training = TRAINING | {"maxSteps": 60} if made is vision_tower else TRAINING  # Gemma 3 learns more slowly
    run = make_run(
        model={"uri": "pvc://models/own"}, training=training, artifacts=[NF4], generation={"maxNewTokens": 24, "samples": 8}
    )
    prepare(run, tmp_path, test=PAIRS)
    check_trainable(run, context(run, "train", tmp_path).inputs.data()[0], folder)
    for stage, step in ((train, "train"), (merge, "merge"), (quantize, "quantize-nf4")):
        stage.run(context(run, step, tmp_path))
    base, merged, nf4 = evaluate.run(context(run, "evaluate", tmp_path)).scores
    assert base.values[Metric.EXACT_MATCH] == 0
    assert merged.values[Metric.EXACT_MATCH] >= 0.75  # an answer that does not stop is none of them
    assert nf4.values[Metric.LOSS] < base.values[Metric.LOSS] / 2
