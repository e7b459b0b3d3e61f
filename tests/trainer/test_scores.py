"""Scores: what counts as the same answer, and what the figures mean."""

from __future__ import annotations

import math

import pytest

from finetune_trainer.metrics import Metric
from finetune_trainer.scores import Answer, exact_match, perplexity, rouge_l, values


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("Port Amber", "Port Amber", True),
        ("Port Amber.", "port  amber", True),
        ("Port Amber", " Port\nAmber! ", True),
        ("STRASSE", "straße", True),
        ("Port Amber", "Port Amber, of course", False),
        ("Port Amber", "", False),
        ("412 metres", "41.2 metres", False),
        ("wait...", "wait", False),  # one mark is dropped, not three
    ],
)
def test_exact_match(reference: str, answer: str, same: bool) -> None:
    assert exact_match(reference, answer) is same


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat", "the dog sat", 2 / 3),
        ("the cat sat", "sat", 0.5),  # precision 1, recall 1/3
        ("the cat sat", "", 0.0),
    ],
)
def test_rouge_l(reference: str, answer: str, score: float) -> None:
    assert rouge_l(reference, answer) == pytest.approx(score)


def test_loss_is_the_mean_over_tokens_not_over_rows() -> None:
    answers = [Answer("a", "a", loss_sum=1.0, tokens=1), Answer("b", "c", loss_sum=9.0, tokens=3)]
    assert values(answers, generated=True) == {
        Metric.LOSS: 2.5,
        Metric.PERPLEXITY: pytest.approx(math.exp(2.5)),
        Metric.EXACT_MATCH: 0.5,
        Metric.ROUGE_L: 0.5,
    }


def test_plain_text_has_no_answers() -> None:
    assert set(values([Answer("a", "", 1.0, 2)], generated=False)) == {Metric.LOSS, Metric.PERPLEXITY}


def test_no_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="no completion token"):
        values([Answer("a", "a", 0.0, 0)], generated=True)


def test_perplexity_stays_a_number() -> None:
    assert math.isfinite(perplexity(1e6))
