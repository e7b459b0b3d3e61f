"""Whether a served model answers as its evaluation says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.contract.served_rows import AskedRow, ServedRows
from finetune_trainer.scoring.scores import normalized


@dataclass(frozen=True)
class Completion:
    """A server's answer; `cut` is true where it would have gone on."""

    text: str
    cut: bool


@dataclass(frozen=True)
class Compared:
    row: int
    same_token_ids: bool
    same_answer: bool


def is_same_answer(row: AskedRow, completion: Completion) -> bool:
    """Whether a served answer is the evaluation's as exactMatch compares them, or its beginning where it was cut."""
    expected, got = normalized(row.answer), normalized(completion.text.rstrip("\N{REPLACEMENT CHARACTER}"))
    return expected.startswith(got) if completion.cut and got else got == expected


def told(compared: Sequence[Compared]) -> ServedRows:
    """The numbers alone."""
    return ServedRows(
        asked=len(compared),
        same_token_ids=sum(c.same_token_ids for c in compared),
        same_answers=sum(c.same_answer for c in compared),
    )


def mistake(compared: Sequence[Compared], min_equal: float) -> str | None:
    """What is wrong, by the rows' numbers and never by their content; None where nothing is."""
    if other := [c.row for c in compared if not c.same_token_ids]:
        return (
            f"the engine's tokenizer gives other token ids than training's for {_numbers(other)} of the test rows; was the"
            " engine told to use another tokenizer?"
        )
    other = [c.row for c in compared if not c.same_answer]
    same = len(compared) - len(other)
    if same < min_equal * len(compared):
        return (
            f"{same} of {len(compared)} test rows were answered as in the evaluation ({_numbers(other)} differ), and"
            f" spec.rollout.gate.testRows.minEqual asks for {min_equal:g} of them; lower it if other answers are as good"
        )
    return None


def _numbers(rows: Sequence[int]) -> str:
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))}"
