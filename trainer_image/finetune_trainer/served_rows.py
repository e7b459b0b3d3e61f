"""Test rows that a served model is asked again: what evaluation keeps of them, and how the two are compared. Pure.

    prompt ── the server's tokenizer ──► promptIds                   every id must be the same
    askedIds ── the server, greedily ──► the answer's first tokens   a share of the rows must begin alike

The ids are the trainer's, so the first line proves the server's tokenizer on rendered text, special tokens included, and
the second its weights, arithmetic and end tokens. The chat template is no part of it: that the artifact carries the
model's own is proven when it is made (proof.py), and the prompts of a gate go through the server's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.fields import Report
from finetune_trainer.scores import normalized

FILE, ROWS = "asked.jsonl", 8
# Rounding differs between engines: where two tokens are nearly as likely, the answers part for good. The chance grows with
# each token, so beginnings are compared. SmolLM2-135M, untaught, answered 8 open questions over 16 tokens alike: 8 under
# llama.cpp, 5 under vLLM in BF16 (evaluated in FP32), 0 and 3 with wrong rotary bases. Over 8 tokens: 8, 6, 4 and 5.
TOKENS = 16


class AskedRow(Report):
    """A test row as evaluation asked it."""

    row: int  # its number among the scored rows, from 1
    prompt: str
    special_tokens: bool  # whether the tokenizer adds BOS and the like to the prompt: a chat template has put them in
    prompt_ids: tuple[int, ...]  # of the prompt by itself
    asked_ids: tuple[int, ...]  # what the answer was asked for with; the answer may have melted into the prompt's last token
    max_tokens: int
    answer: str


class ServedRows(Report):
    """What became of the test rows that a revision was asked."""

    asked: int
    """Rows that were asked."""
    same_token_ids: int
    """Rows whose prompt the server turned into the token ids of training."""
    same_answers: int
    """Rows whose answer began as the evaluation's."""


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
