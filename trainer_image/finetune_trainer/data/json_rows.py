"""Rows in JSON, in the shapes in which programs write them.

one object a line             JSON lines
[{…}, {…}]                    a list, on one line or on many
{"data": [{…}, …]}            a list under one key, with or without a version and the like beside it
{"train": […], "test": […]}   one list a split
{"prompt": ["a", …], …}       a list a column
{"prompt": {"0": "a"}, …}     pandas' DataFrame.to_json, also by index, or as {"columns": […], "data": [[…]]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.data.decoding import unreadable
from finetune_trainer.data.json_text import NotJson, all_of, loads
from finetune_trainer.data.layout import KEYWORDS, TRAIN
from finetune_trainer.data.turns import CONTENT
from finetune_trainer.failures import StepFailed

OF_TURNS = ("messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected", "history")
SPLITS = {word: split for split, words in KEYWORDS.items() for word in words}


@dataclass
class Rows:
    """Values with the places of rows, and the keys of a file with several splits: the one that was read, and the others."""

    name: str
    split: str | None  # which split of the file is read, where it has several; None: train
    chosen: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def read(self, stream: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
        """Place and columns of each row. Raises StepFailed DatasetUnreadable with the line."""
        numbered = ((number, line) for number, line in enumerate(stream, start=1) if line.strip())
        first = next(numbered, None)
        if first is None:
            return
        try:
            value = loads(first[1])
        except NotJson:
            yield from self._whole("\n" * (first[0] - 1) + first[1] + "".join(self._rest(stream)))
            return
        second = next(numbered, None)
        if second is None:
            found = self._unwrapped(value)
            at = f"line {first[0]}"
            yield from (self._row(at if row is value else f"row {number}", row) for number, row in enumerate(found, start=1))
            return
        yield self._row(f"line {first[0]}", value)
        for number, line in (second, *numbered):
            yield self._row(f"line {number}", self._parsed(number, line))

    def _rest(self, stream: TextIO) -> Iterator[str]:
        yield from stream

    def _parsed(self, number: int, line: str) -> Any:
        try:
            return loads(line)
        except NotJson as error:
            raise unreadable(f"{self.name} line {number}", str(error)) from error

    def _whole(self, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows of a value that takes many lines, or of several of them."""
        try:
            values = all_of(text)
        except NotJson as error:
            raise unreadable(f"{self.name} line {error.line}", str(error)) from error
        yield from self._values(values)

    def _values(self, values: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        found = self._unwrapped(values[0]) if len(values) == 1 else values
        for number, value in enumerate(found, start=1):
            yield self._row(f"row {number}", value)

    def _row(self, place: str, value: Any) -> tuple[str, dict[str, Any]]:
        if isinstance(value, list) and value and all(_is_turn(turn) for turn in value):
            value = {"messages": value}
        if not isinstance(value, dict):
            raise unreadable(f"{self.name} {place}", f"must hold an object with columns, not {type(value).__name__}")
        return f"{self.name} {place}", value

    def _unwrapped(self, value: Any) -> list[Any]:
        """The rows that the only value of a file holds."""
        if isinstance(value, list):
            return [value] if value and all(_is_turn(turn) for turn in value) else value
        if not isinstance(value, dict):
            raise unreadable(self.name, "must hold a list of objects")
        splits = {key: SPLITS.get(key.lower()) for key in value}
        if value and all(splits.values()) and all(isinstance(rows, list | dict) for rows in value.values()):
            return self._unwrapped(value[self._of_split(splits)])
        lists = [key for key, rows in value.items() if _are_objects(rows) and key not in OF_TURNS and not _is_said(rows)]
        if len(lists) > 1 and not _same_length(value):
            raise unreadable(self.name, f"holds several lists of rows ({', '.join(lists)}): leave one of them")
        if len(lists) == 1:
            return list(value[lists[0]])
        if len(value) == 1 and isinstance(only := next(iter(value.values())), dict) and only:
            return self._unwrapped(only)
        return _by_columns(value) or [value]

    def _of_split(self, splits: Mapping[str, str | None]) -> str:
        wanted = self.split or TRAIN
        found = next((key for key, split in splits.items() if wanted in (key, split)), None)
        if found is None and self.split is None and len(splits) == 1:
            found = next(iter(splits))
        if found is None:
            message = f"spec.dataset: {self.name} has no split {wanted}; name one of: {', '.join(splits)}"
            raise StepFailed(StepReason.DatasetSplitUnknown, message)
        self.chosen.append(f"{self.name}: {found}")
        self.unread += [f"{self.name}: {key}" for key in splits if key != found]
        return found


def _by_columns(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of an object that holds columns, or rows by their index; none where it is a row itself."""
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(cells, list) for cells in data):
        return [dict(zip(names, cells, strict=True)) for cells in data]
    if all(isinstance(cells, list) for cells in value.values()) and _same_length(value):
        is_row = any(_are_objects(cells) for cells in value.values())
        return [] if is_row else [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if not value or not all(isinstance(cells, dict) and cells for cells in value.values()):
        return []
    indices = next(iter(value.values())).keys()
    if all(key.isdigit() for key in indices) and all(cells.keys() == indices for cells in value.values()):
        return [{name: cells[index] for name, cells in value.items()} for index in indices]
    return list(value.values())


def _same_length(value: Mapping[str, Any]) -> bool:
    return len({len(cells) if isinstance(cells, list) else None for cells in value.values()}) == 1


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _is_said(rows: list[dict[str, Any]]) -> bool:
    """Whether these are the turns of one row, and no rows: with what was said beside who said it."""
    return all(_is_turn(row) and not row.keys().isdisjoint(CONTENT) for row in rows)


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)
