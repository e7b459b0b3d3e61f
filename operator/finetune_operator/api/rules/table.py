"""The contract's table of what goes together, as rules of the CRD."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_operator.meta import Rule
from finetune_trainer.contract.combinations import Combination


def of_table(rows: Iterable[Combination]) -> tuple[Rule, ...]:
    return tuple(Rule(row.at, row.must, row.sentence) for row in rows)
