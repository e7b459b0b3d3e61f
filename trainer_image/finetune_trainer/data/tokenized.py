"""The rows that prepare rendered, as the trainers take them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

IGNORED = -100  # torch's cross entropy leaves positions with this label out


def rows(path: Path) -> Dataset | None:
    """Tokens and labels of the rendered rows; None where the file is missing or empty.

    The labels are made here: TRL passes over a completion_mask unless it has seen prompt and completion columns.
    """
    read = _read(path)
    if not read:
        return None
    return Dataset.from_dict({"input_ids": [row["input_ids"] for row in read], "labels": [labels(row) for row in read]})


def labels(row: dict[str, Any]) -> list[int]:
    """The tokens that the loss is computed on, and IGNORED for all others."""
    pairs = zip(row["input_ids"], row["completion_mask"], strict=True)
    return [token if counts else IGNORED for token, counts in pairs]


def preferences(path: Path) -> Dataset | None:
    """Prompt, chosen and rejected answer of each row of preferences; of unpaired ones prompt, answer and whether that is
    desirable. None where the file is missing or empty.
    """
    read = _read(path)
    if not read:
        return None
    prompts = [row["input_ids"][: row["prompt_tokens"]] for row in read]
    answers = [row["input_ids"][row["prompt_tokens"] :] for row in read]
    if "rejected_ids" not in read[0]:
        unpaired = {"prompt_ids": prompts, "completion_ids": answers, "label": [row["desirable"] for row in read]}
        return Dataset.from_dict(unpaired)
    rejected = [row["rejected_ids"] for row in read]
    return Dataset.from_dict({"prompt_ids": prompts, "chosen_ids": answers, "rejected_ids": rejected})


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open() as lines:
        return [json.loads(line) for line in lines]
