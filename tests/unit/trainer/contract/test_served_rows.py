"""Test rows that a served model is asked again: when an answer is the same one, and what is said where it isn't."""

from __future__ import annotations

import pytest

from finetune_trainer.contract.served_rows import AskedRow, ServedRows, length
from finetune_trainer.serving.compare import Compared, Completion, is_same_answer, mistake, told


def row(answer: str) -> AskedRow:
    return AskedRow(row=1, prompt="?", special_tokens=False, prompt_ids=(7,), asked_ids=(7,), max_tokens=16, answer=answer)


@pytest.mark.parametrize(
    ("expected", "got", "cut", "same"),
    [
        ("Port Amber.", " port  amber", False, True),
        ("Port Amber", "Port Amber, of course", False, False),
        ("Port Amber, of course", "Port Amber", False, False),
        ("Port Amber, of course", "Port Amber,", True, True),
        ("Port Amber", "Port Amber", True, True),
        ("Port Amber", "Port Amber and then", True, False),
        ("Ünder", "Ü\N{REPLACEMENT CHARACTER}", True, True),
        ("", "", False, True),
        ("Port Amber", "", False, False),
        ("Port Amber", "", True, False),
        ("", "  \n", True, True),
    ],
)
def test_an_answer_is_the_same_or_its_beginning_where_it_was_cut(expected: str, got: str, cut: bool, same: bool) -> None:
    assert is_same_answer(row(expected), Completion(got, cut)) is same


@pytest.mark.parametrize(("new_tokens", "asked"), [(8, 8), (16, 16), (256, 16)])
def test_a_row_is_asked_for_the_beginning_of_an_answer(new_tokens: int, asked: int) -> None:
    assert length(new_tokens) == asked


def compared(*answers: bool, ids: bool = True) -> list[Compared]:
    return [Compared(number, ids, same) for number, same in enumerate(answers, 1)]


def test_numbers() -> None:
    found = [*compared(True, False), Compared(3, False, True)]
    assert told(found) == ServedRows(asked=3, same_token_ids=2, same_answers=2)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.75])
def test_a_share_that_is_met_exactly_is_enough(share: float) -> None:
    assert mistake(compared(True, True, True, False), share) is None


def test_too_few_alike() -> None:
    text = mistake(compared(True, False, True, False), 0.75)
    assert text == (
        "2 of 4 test rows were answered as in the evaluation (rows 2, 4 differ), and spec.rollout.gate.testRows.minEqual asks"
        " for 0.75 of them; lower it if other answers are as good"
    )


def test_other_token_ids_are_wrong_whatever_is_answered() -> None:
    text = mistake([*compared(True, True), Compared(5, False, True)], 0.0)
    assert text is not None
    assert text.startswith("the engine's tokenizer gives other token ids than training's for row 5 of the test rows")


def test_none_asked_is_none_wrong() -> None:
    assert mistake([], 1.0) is None
