"""The columns that rows of each format have, and the names that the files at hand give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.data.rows import Row
from finetune_trainer.data.turns import is_empty

# In the order in which Auto tries them: who has more of the columns comes first.
COLUMNS: dict[DatasetFormat, tuple[str, ...]] = {
    DatasetFormat.PREFERENCE: ("chosen", "rejected"),
    DatasetFormat.MESSAGES: ("messages",),
    DatasetFormat.SHARE_GPT: ("conversations",),
    DatasetFormat.UNPAIRED_PREFERENCE: ("prompt", "completion", "label"),
    DatasetFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    DatasetFormat.ALPACA: ("instruction", "output"),
    DatasetFormat.CLASSIFICATION: ("text", "label"),
    DatasetFormat.TEXT: ("text",),
}
# Columns that rows of a format may have; all but Text may have those of CONTEXT, too.
OPTIONAL = {DatasetFormat.PREFERENCE: ("prompt",), DatasetFormat.ALPACA: ("input",)}
CONTEXT = ("system", "history")


@dataclass(frozen=True)
class Shape:
    """A format, and for each of its columns the name that rows give it where that is another."""

    format: DatasetFormat
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def known(self) -> tuple[str, ...]:
        """The format's own names of all columns that it may have."""
        context = () if self.format is DatasetFormat.TEXT else CONTEXT
        return (*COLUMNS[self.format], *OPTIONAL.get(self.format, ()), *context)

    def source(self, name: str) -> str:
        """The column of the files that one of the format's stands for."""
        return self.sources.get(name, name)

    def values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row's cells by the format's names; a column that the row lacks is left out."""
        found = {name: self.source(name) for name in self.known}
        return {name: row[source] for name, source in found.items() if source in row}

    def complete(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has every column that the format needs, empty or not."""
        return all(self.source(name) in row for name in COLUMNS[self.format])

    def is_of(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has every column that the format needs, and something in one of them, which a table's may not."""
        return self.complete(row) and not all(is_empty(row[self.source(name)]) for name in COLUMNS[self.format])

    def unused(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """Columns with something in them that no row is read from."""
        used = {self.source(name) for name in self.known}
        found = (name for row in rows for name, value in row.values.items() if name not in used and not is_empty(value))
        return tuple(dict.fromkeys(found))


def columns_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """Names of the columns that rows have, in the order of their appearance."""
    return tuple(dict.fromkeys(name for row in rows for name in row.values))
