"""Scores: what counts as the same answer, and what the figures mean."""

from __future__ import annotations

import math

import pytest

from finetune_trainer.contract.metrics import Metric
from finetune_trainer.scoring.scores import Answer, exact_match, of_labels, perplexity, rouge, values


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
    ("reference", "answer", "one", "two", "longest"),
    [
        ("the cat sat", "the cat sat", 1.0, 1.0, 1.0),
        ("the cat sat", "the dog sat", 2 / 3, 0.0, 2 / 3),
        ("the cat sat", "sat", 0.5, 0.0, 0.5),  # precision 1, recall 1/3
        ("the cat sat down", "sat down the cat", 1.0, 2 / 3, 0.5),
        ("the cat sat", "", 0.0, 0.0, 0.0),
    ],
)
def test_rouge(reference: str, answer: str, one: float, two: float, longest: float) -> None:
    assert rouge(reference, answer) == pytest.approx({"rouge1": one, "rouge2": two, "rougeL": longest})


def test_loss_and_entropy_are_means_over_tokens_not_over_rows() -> None:
    answers = [Answer("a b", "a b", 1.0, 1, entropy_sum=2.0), Answer("b c", "c", 9.0, 3, entropy_sum=4.0)]
    assert values(answers, generated=True) == {
        Metric.LOSS: 2.5,
        Metric.PERPLEXITY: pytest.approx(math.exp(2.5)),
        Metric.EXACT_MATCH: 0.5,
        Metric.ROUGE_1: pytest.approx((1 + 2 / 3) / 2),
        Metric.ROUGE_2: 0.5,
        Metric.ROUGE_L: pytest.approx((1 + 2 / 3) / 2),
        Metric.ENTROPY: 1.5,
    }


def test_accuracy_and_macro_f1_are_those_of_the_labels() -> None:
    """f1 is 2·right / (2·right + wrongly told + missed); an answer that is no label misses one and tells none."""
    pairs = [("yes", "Yes."), ("yes", "yes"), ("yes", "YES"), ("no", "yes"), ("no", "no"), ("yes", "the answer is yes")]
    found = of_labels(pairs)
    assert found[Metric.ACCURACY] == pytest.approx(4 / 6)
    assert found[Metric.MACRO_F1] == pytest.approx((2 * 3 / (2 * 3 + 1 + 1) + 2 * 1 / (2 * 1 + 1)) / 2)


def test_a_model_that_says_one_label_only_has_a_low_macro_f1() -> None:
    found = of_labels([("common", "common")] * 9 + [("rare", "common")])
    assert found[Metric.ACCURACY] == 0.9
    assert found[Metric.MACRO_F1] == pytest.approx((18 / 19 + 0) / 2)


def test_labels_are_scored_where_rows_have_them() -> None:
    answers = [Answer("yes", "yes", 1.0, 1, 0.0)]
    assert {Metric.ACCURACY, Metric.MACRO_F1} <= set(values(answers, generated=True, labelled=True))
    assert not {Metric.ACCURACY, Metric.MACRO_F1} & set(values(answers, generated=True))


def test_plain_text_has_no_answers() -> None:
    assert set(values([Answer("a", "", 1.0, 2, 1.0)], generated=False)) == {Metric.LOSS, Metric.PERPLEXITY, Metric.ENTROPY}


def test_no_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="no completion token"):
        values([Answer("a", "a", 0.0, 0, 0.0)], generated=True)


def test_perplexity_stays_a_number() -> None:
    assert math.isfinite(perplexity(1e6))
