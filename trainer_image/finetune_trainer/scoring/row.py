"""What is scored and by what: a rendered test row, and the one method that every engine offers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune_trainer.contract.reports import Check
from finetune_trainer.scoring.scores import Answer


@dataclass(frozen=True)
class Row:
    """A rendered test row. Plain text has no prompt and is not answered: its loss is all there is to score."""

    tokens: tuple[int, ...]
    counted: tuple[bool, ...]  # by token: does the loss count it
    prompt: str
    prompt_tokens: int  # how many of the tokens come before the answer
    reference: str
    rejected: tuple[int, ...] = ()  # Preference: tokens of the answer that the reference was preferred to

    @property
    def length(self) -> int:
        """Tokens of the longest sequence that is scored."""
        return max(len(self.tokens), self.prompt_tokens + len(self.rejected))

    @property
    def asked(self) -> list[int]:
        """The tokens that an answer is asked for with."""
        return list(self.tokens[: self.prompt_tokens])


def prefers_chosen(row: Row, loss: Callable[[Sequence[int], Sequence[bool]], float]) -> bool | None:
    """Whether a model gives the chosen answer a higher probability than the rejected one; None for rows without.

    `loss` sums the negative log-likelihood of the tokens that are counted.
    """
    if not row.rejected:
        return None
    asked = row.tokens[: row.prompt_tokens]
    answers = (row.tokens[row.prompt_tokens :], row.rejected)
    chosen, rejected = (loss(asked + answer, [False] * len(asked) + [True] * len(answer)) for answer in answers)
    return chosen < rejected


class Scorer(Protocol):
    """An engine with one model."""

    checks: tuple[Check, ...]  # what it proved of itself before it answered

    def score(self, rows: Sequence[Row]) -> Iterator[Answer]:
        """One Answer for each row, in the rows' order."""
