"""Rendered rows, as prepare writes them and every later step reads them: <split>.jsonl, one JSON object a line, in UTF-8."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SAMPLES = "samples"  # beside the splits: a few rows as people check them


@dataclass(frozen=True)
class Rendered:
    """One row as it is trained on. prompt and completion are those of the last answer, for evaluation; plain text has no
    prompt.

    `prompt_tokens` counts the tokens before that answer: what a model is given when its own answer is scored. In a row of
    preferences that answer is the chosen one, and `rejected_ids` are the tokens of the other after the same prompt.
    """

    input_ids: tuple[int, ...]
    completion_mask: tuple[int, ...]
    prompt: str
    completion: str
    prompt_tokens: int
    rejected: str | None = None
    rejected_ids: tuple[int, ...] | None = None
    desirable: bool | None = None

    @property
    def length(self) -> int:
        """Tokens of the longest sequence that the row gives."""
        return max(len(self.input_ids), self.prompt_tokens + len(self.rejected_ids or ()))

    @property
    def tokens(self) -> int:
        """Tokens of all sequences that the row gives."""
        return len(self.input_ids) + (self.prompt_tokens + len(self.rejected_ids) if self.rejected_ids else 0)

    @property
    def counted(self) -> tuple[bool, ...]:
        """Whether the loss counts each token."""
        return tuple(map(bool, self.completion_mask))

    @property
    def asked_ids(self) -> tuple[int, ...]:
        """The tokens that an answer is asked for with."""
        return self.input_ids[: self.prompt_tokens]

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The tokens of the answer to them; in a row of preferences, of the chosen one."""
        return self.input_ids[self.prompt_tokens :]

    @property
    def columns(self) -> dict[str, Any]:
        """The row as it is written, without what it doesn't have: rejected, rejected_ids and desirable are for preferences."""
        return {name: value for name, value in vars(self).items() if value is not None}


ROW = TypeAdapter(Rendered)


def write(folder: Path, split: str, rows: Iterable[Rendered]) -> None:
    """The rows of one split, as `read` finds them again. The bytes are in the digests that fingerprints are made of."""
    write_lines(folder, split, (row.columns for row in rows))


def write_lines(folder: Path, name: str, lines: Iterable[dict[str, Any]]) -> None:
    """Objects as JSON lines in `folder`/`name`.jsonl."""
    with path(folder, name).open("w", encoding="utf-8") as stream:
        for line in lines:
            stream.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


def read(folder: Path, split: str, most: int | None = None, every: int = 1) -> list[Rendered]:
    """At most `most` rows of one split: its first ones, or each `every`th of them."""
    with path(folder, split).open(encoding="utf-8") as lines:
        return [ROW.validate_json(line) for line in islice(lines, 0, None if most is None else most * every, every)]


def count(folder: Path, split: str) -> int:
    """How many rows a split has."""
    with path(folder, split).open("rb") as lines:
        return sum(1 for _ in lines)


def path(folder: Path, name: str) -> Path:
    return folder / f"{name}.jsonl"
