"""What is scored and by what: a rendered test row, and the one method that every engine offers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune_trainer.scores import Answer


@dataclass(frozen=True)
class Row:
    """A rendered test row. Plain text has no prompt and is not answered: its loss is all there is to score."""

    tokens: tuple[int, ...]
    counted: tuple[bool, ...]  # by token: does the loss count it
    prompt: str
    prompt_tokens: int  # how many of the tokens come before the answer
    reference: str

    @property
    def asked(self) -> list[int]:
        """The tokens that an answer is asked for with."""
        return list(self.tokens[: self.prompt_tokens])


class Scorer(Protocol):
    """An engine with one model loaded."""

    def score(self, rows: Sequence[Row]) -> Iterator[Answer]:
        """One Answer for each row, in the rows' order."""
