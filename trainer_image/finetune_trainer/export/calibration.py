"""Training rows that quantizers look at, to keep what matters for the model's own task."""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.data import rendered
from finetune_trainer.data.rendered import TRAIN

ROWS, TOKENS = 128, 2048  # their results change little beyond a hundred rows


def rows(data: Path, count: int = ROWS) -> list[list[int]]:
    """Token ids of up to `count` training rows from all over the file, each cut at TOKENS."""
    every = max(1, rendered.count(data, TRAIN) // count)
    return [list(row.input_ids[:TOKENS]) for row in rendered.read(data, TRAIN, count, every)]
