"""What scores rendered test rows: what every engine offers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from finetune_trainer.contract.reports import Check
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.scoring.scores import Answer


def prefers_chosen(row: Rendered, loss: Callable[[Sequence[int], Sequence[bool]], float]) -> bool | None:
    """Whether a model gives the chosen answer a higher probability than the rejected one; None for rows without.

    `loss` sums the negative log-likelihood of the tokens that are counted.
    """
    if not row.rejected_ids:
        return None
    asked, answers = row.asked_ids, (row.answer_ids, row.rejected_ids)
    chosen, rejected = (loss(asked + answer, [False] * len(asked) + [True] * len(answer)) for answer in answers)
    return chosen < rejected


class Scorer(Protocol):
    """An engine with one model."""

    checks: tuple[Check, ...]  # what it proved of itself before it answered
    alone: tuple[str, ...]  # beginnings of its answers to the rows that were asked by themselves, there when all are scored

    def score(self, rows: Sequence[Rendered], alone: int = 0) -> Iterator[Answer]:
        """One Answer for each row, in the rows' order. The first `alone` rows are asked by themselves as well, as a served
        model is asked (contract/served_rows.py): how a product is rounded can depend on how many rows are in it.
        """
