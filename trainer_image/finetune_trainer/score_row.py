"""What is scored and by what: a rendered test row, and the one method that every engine offers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune_trainer.scores import Answer


@dataclass(frozen=True)
class Row:
    """A rendered test row. `prompt` ends where the answer begins; it is empty for plain text."""

    tokens: tuple[int, ...]
    completion: tuple[bool, ...]  # by token: does the loss count it
    prompt: str
    reference: str


class Scorer(Protocol):
    """An engine with one model loaded."""

    def score(self, rows: Sequence[Row]) -> Iterator[Answer]:
        """One Answer for each row, in the rows' order."""
