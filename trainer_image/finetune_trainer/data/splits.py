"""Which rows are held out: by seed and content only, so that any machine and any order of the files gives the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence

from finetune_trainer.contract.dataset import DatasetFormat, Split
from finetune_trainer.data.rows import Row
from finetune_trainer.data.shape import Shape

DEFAULT_FRACTION = 0.1  # of a split that names neither rows of its own nor a fraction
_SPACE = re.compile(r"(\\[nrtf]|\s)+")  # in JSON, white space or its escape
_AT_ENDS = re.compile(r' ?" ?')


def content(row: Row, columns: Sequence[str] | None = None) -> str:
    """What a row says, in all of its columns or in these: the same of copies that differ in white space or other columns."""
    values = row.values if columns is None else {name: row.values.get(name) for name in columns}
    return _AT_ENDS.sub('"', _SPACE.sub(" ", json.dumps(values, sort_keys=True, default=str)))


def said(shape: Shape) -> Callable[[Row], str]:
    """What rows of a shape say, by prompt and answer; a row that lacks a column of its format is like none but its equals."""
    told = (name for name in shape.known if (shape.format, name) != (DatasetFormat.PREFERENCE, "rejected"))
    columns = tuple(shape.source(name) for name in told)
    return lambda row: content(row, columns if shape.complete(row.values) else None)


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """An order that depends on seed and content only: the same on any machine, and equal rows lie side by side."""

    def key(row: Row) -> bytes:
        content = json.dumps(row.values, sort_keys=True, default=str)
        return hashlib.sha256(f"{seed}:{content}".encode()).digest()

    return sorted(rows, key=key)


def hold_out(
    rows: Sequence[Row], split: Split, stratify_by: str | None = None, alike: Callable[[Row], str] = content
) -> tuple[list[Row], list[Row]]:
    """(held out, the rest). A fraction above 0 holds out one row at least; rows that say what a held-out one says go with it,
    unless that leaves none. `alike` is the same for those.

    With `stratify_by` each value of that column is held out in proportion, and one row of each at least is not.
    """
    fraction = DEFAULT_FRACTION if split.fraction is None else split.fraction
    held: set[int] = set()
    if fraction > 0 and len(rows) > 1:
        share = max(fraction, 1 / len(rows))
        before = 0
        for group in _groups(shuffled(rows, split.seed), stratify_by):
            # Each group takes what the rounded total has grown by: the groups' counts sum up to the total's.
            count = round((before + len(group)) * share) - round(before * share)
            before += len(group)
            beside = _side_by_side(group, alike)
            held |= {id(row) for row in beside[: _with_equals(beside, count, alike)]}
    return [r for r in rows if id(r) in held], [r for r in rows if id(r) not in held]


def _groups(ordered: Sequence[Row], column: str | None) -> list[list[Row]]:
    """The rows by the value that they have in this column, larger groups first; in one group where there is none."""
    if column is None:
        return [list(ordered)]
    groups: dict[str, list[Row]] = {}
    for row in ordered:
        groups.setdefault(json.dumps(row.values.get(column), sort_keys=True, default=str), []).append(row)
    return [rows for _, rows in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))]


def _side_by_side(group: Sequence[Row], alike: Callable[[Row], str]) -> list[Row]:
    """The same rows with those that are alike behind the first of them."""
    copies: dict[str, list[Row]] = {}
    for row in group:
        copies.setdefault(alike(row), []).append(row)
    return [row for found in copies.values() for row in found]


def _with_equals(group: Sequence[Row], count: int, alike: Callable[[Row], str]) -> int:
    """How many of a group's first rows to hold out, so that none is like one of the rest and one is left."""
    count = end = min(count, len(group) - 1)
    while 0 < end < len(group) and alike(group[end]) == alike(group[end - 1]):
        end += 1
    return count if end == len(group) else end


def sample(rows: Sequence[Row], count: int | None, seed: int) -> list[Row]:
    """At most `count` rows, chosen by the seed, in their first order."""
    if count is None or count >= len(rows):
        return list(rows)
    chosen = {id(row) for row in shuffled(rows, seed)[:count]}
    return [row for row in rows if id(row) in chosen]
