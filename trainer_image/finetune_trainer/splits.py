"""Which rows are held out: by seed and content only, so that any machine and any order of the files gives the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from finetune_trainer.dataset_fields import Split
from finetune_trainer.rows import Row

DEFAULT_FRACTION = 0.1  # of a split that names neither rows of its own nor a fraction


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """An order that depends on seed and content only: the same on any machine, and equal rows lie side by side."""

    def key(row: Row) -> bytes:
        content = json.dumps(row.values, sort_keys=True, default=str)
        return hashlib.sha256(f"{seed}:{content}".encode()).digest()

    return sorted(rows, key=key)


def hold_out(rows: Sequence[Row], split: Split) -> tuple[list[Row], list[Row]]:
    """(held out, the rest). A fraction above 0 holds out one row at least; rows equal to a held-out one go with it,
    unless that leaves none."""
    fraction = DEFAULT_FRACTION if split.fraction is None else split.fraction
    ordered = shuffled(rows, split.seed)
    count = max(1, round(len(rows) * fraction)) if fraction > 0 and len(rows) > 1 else 0
    end = count
    while 0 < end < len(ordered) and ordered[end].values == ordered[end - 1].values:
        end += 1
    held = {id(row) for row in ordered[: count if end == len(ordered) else end]}
    return [r for r in rows if id(r) in held], [r for r in rows if id(r) not in held]


def sample(rows: Sequence[Row], count: int | None, seed: int) -> list[Row]:
    """At most `count` rows, chosen by the seed, in their first order."""
    if count is None or count >= len(rows):
        return list(rows)
    chosen = {id(row) for row in shuffled(rows, seed)[:count]}
    return [row for row in rows if id(row) in chosen]
