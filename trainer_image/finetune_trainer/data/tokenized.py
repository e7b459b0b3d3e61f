"""The rows that prepare rendered, as the trainers take them."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from finetune_trainer.data import rendered
from finetune_trainer.data.rendered import Rendered

IGNORED = -100  # torch's cross entropy leaves positions with this label out


def rows(folder: Path, split: str) -> Dataset | None:
    """Tokens and labels of a split's rows; None where it has none.

    The labels are made here: TRL passes over a completion_mask unless it has seen prompt and completion columns.
    """
    read = rendered.read(folder, split)
    if not read:
        return None
    return Dataset.from_dict({"input_ids": [row.input_ids for row in read], "labels": [labels(row) for row in read]})


def labels(row: Rendered) -> list[int]:
    """The tokens that the loss is computed on, and IGNORED for all others."""
    return [token if counts else IGNORED for token, counts in zip(row.input_ids, row.counted, strict=True)]


def preferences(folder: Path, split: str) -> Dataset | None:
    """Prompt, chosen and rejected answer of each row of preferences; of unpaired ones prompt, answer and whether that is
    desirable. None where the split has no rows.
    """
    read = rendered.read(folder, split)
    if not read:
        return None
    prompts, answers = [row.asked_ids for row in read], [row.answer_ids for row in read]
    if read[0].rejected_ids is None:
        unpaired = {"prompt_ids": prompts, "completion_ids": answers, "label": [row.desirable for row in read]}
        return Dataset.from_dict(unpaired)
    rejected = [row.rejected_ids for row in read]
    return Dataset.from_dict({"prompt_ids": prompts, "chosen_ids": answers, "rejected_ids": rejected})
