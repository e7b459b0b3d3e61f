"""Rows as prepare writes them, without a model: a tokenizer of single bytes, and what became of files that somebody wrote."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.contract.reports import DatasetFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.data import dataset


def byte_tokenizer(template: str | None) -> Any:
    """A tokenizer with a token for each byte, and four special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate([*special, *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=special[1],
        eos_token=special[3],
        pad_token=special[0],
        additional_special_tokens=[special[2]],
        chat_template=template,
    )


@dataclass(frozen=True)
class Written:
    """What prepare made of files: its facts, and the rows of each split as text."""

    facts: DatasetFacts
    rows: dict[str, list[dict[str, Any]]]  # prompt and completion; text and learned by the tokens

    @property
    def dropped(self) -> dict[str, tuple[int, str]]:
        return {count.cause: (count.rows, count.example) for count in self.facts.dropped or ()}

    @property
    def changed(self) -> dict[str, tuple[int, str]]:
        return {count.cause: (count.rows, count.example) for count in self.facts.changed or ()}

    def of(self, name: str, split: str = "train") -> list[Any]:
        return [row[name] for row in self.rows[split]]


def write_rows(run: RunConfig, mounts: Path, scratch: Path, tokenizer: Any) -> Written:
    """Load and render the rows of a run whose claims and ConfigMaps lie below `mounts`."""
    shutil.rmtree(scratch / "data", ignore_errors=True)
    splits = dataset.load(run, scratch / "rows", str(mounts))
    facts = dataset.render(run, splits, tokenizer, scratch / "data", lambda *_: None)
    found = {name: read_rows(scratch / "data" / f"{name}.jsonl", tokenizer) for name in ("train", "validation", "test")}
    return Written(facts, found)


def read_rows(file: Path, tokenizer: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    for row in rows:
        row["text"] = tokenizer.decode(row["input_ids"])
        learned = [token for token, kept in zip(row["input_ids"], row["completion_mask"], strict=True) if kept]
        row["learned"] = tokenizer.decode(learned)
    return rows
