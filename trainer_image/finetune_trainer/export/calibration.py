"""Training rows that quantizers look at, to keep what matters for the model's own task."""

from __future__ import annotations

import json
from pathlib import Path

ROWS, TOKENS = 128, 2048  # their results change little beyond a hundred rows


def rows(data: Path, count: int = ROWS) -> list[list[int]]:
    """Token ids of up to `count` training rows from all over the file, each cut at TOKENS."""
    lines = (data / "train.jsonl").read_text().splitlines()
    chosen = lines[:: max(1, len(lines) // count)][:count]
    return [json.loads(line)["input_ids"][:TOKENS] for line in chosen]
