"""Scores of answers and of losses: pure functions, without torch.

exactMatch is the share of answers that equal their reference after `normalized`. rougeL is the mean F-measure of the
longest common subsequence of words (ROUGE-L, Lin 2004), with stemming. loss is the mean negative log-likelihood of the
completion's tokens in nats, over all tokens of all rows, so that a long row weighs more; perplexity is e to the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.metrics import Metric


@dataclass(frozen=True)
class Answer:
    """One scored row: what was expected, what was said, and the loss over the expected completion's tokens."""

    reference: str
    answer: str
    loss_sum: float  # nats
    tokens: int


def normalized(text: str) -> str:
    """Case folded, white space collapsed and trimmed, one closing full stop, exclamation or question mark dropped.

    "Port  Amber." equals "port amber"; "Port Amber, of course" doesn't.
    """
    folded = " ".join(text.casefold().split())
    return folded[:-1].rstrip() if folded.endswith((".", "!", "?")) else folded


def exact_match(reference: str, answer: str) -> bool:
    """Whether an answer is the reference, but for what `normalized` takes away."""
    return normalized(reference) == normalized(answer)


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L F-measure, 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return float(scorer.score(reference, answer)["rougeL"].fmeasure)


def values(answers: Sequence[Answer], *, generated: bool) -> dict[Metric, float]:
    """Every metric over all rows. Rows without a prompt (plain text) have no answer: loss and perplexity alone.

    Raises ValueError when there is no token to score.
    """
    tokens = sum(a.tokens for a in answers)
    if tokens == 0:
        raise ValueError("no completion token to score")
    loss = sum(a.loss_sum for a in answers) / tokens
    found = {Metric.LOSS: loss, Metric.PERPLEXITY: perplexity(loss)}
    if generated:
        count = len(answers)
        found[Metric.EXACT_MATCH] = sum(exact_match(a.reference, a.answer) for a in answers) / count
        found[Metric.ROUGE_L] = sum(rouge_l(a.reference, a.answer) for a in answers) / count
    return found


def perplexity(loss: float) -> float:
    """e to the loss; the largest float where that overflows, since JSON knows no infinity."""
    return math.exp(min(loss, 709.0))
