"""Scores of answers and of losses: pure functions, without torch.

exactMatch  share of the answers that equal their reference after `normalized`
rouge1, rouge2, rougeL
            mean F-measure of the words, word pairs and longest common subsequence of words that answer and reference share
            (ROUGE, Lin 2004), with stemming
accuracy    share of the rows whose answer is their label; an answer that is no label at all is wrong
macroF1     F1 of each label, averaged over the labels that occur in the test rows, however rare
preferenceAccuracy
            share of the rows whose chosen answer has a higher probability than the rejected one, both as a whole: the model's
            own taste, whatever the reference says
loss        mean negative log-likelihood of the completion's tokens in nats, over all tokens of all rows, so that a long row
            weighs more; perplexity is e to the loss
entropy     mean entropy of the model's predictions of those tokens in nats: how undecided it is, right or wrong
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from finetune_trainer.contract.metrics import Metric

ROUGE = (Metric.ROUGE_1, Metric.ROUGE_2, Metric.ROUGE_L)


@dataclass(frozen=True)
class Answer:
    """One scored row: what was expected, what was said, and the loss over the expected completion's tokens."""

    reference: str
    answer: str
    loss_sum: float  # nats
    tokens: int
    entropy_sum: float  # nats
    prefers_chosen: bool | None = None  # rows of format Preference only


def normalized(text: str) -> str:
    """Case folded, white space collapsed and trimmed, one closing full stop, exclamation or question mark dropped.

    "Port  Amber." equals "port amber"; "Port Amber, of course" doesn't.
    """
    folded = " ".join(text.casefold().split())
    return folded[:-1].rstrip() if folded.endswith((".", "!", "?")) else folded


def exact_match(reference: str, answer: str) -> bool:
    """Whether an answer is the reference, but for what `normalized` takes away."""
    return normalized(reference) == normalized(answer)


def rouge(reference: str, answer: str) -> dict[Metric, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures, 0 to 1."""
    found = _rouge_scorer().score(reference, answer)
    return {metric: float(found[metric].fmeasure) for metric in ROUGE}


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([metric.value for metric in ROUGE], use_stemmer=True)


def of_row(answer: Answer, *, generated: bool) -> dict[Metric, float]:
    """The scores that one row has on its own. A row without a prompt (plain text) has no answer and so no score of one."""
    preferred = {} if answer.prefers_chosen is None else {Metric.PREFERENCE_ACCURACY: float(answer.prefers_chosen)}
    if not generated:
        return preferred
    return preferred | {
        Metric.EXACT_MATCH: float(exact_match(answer.reference, answer.answer)),
        **rouge(answer.reference, answer.answer),
    }


def values(answers: Sequence[Answer], *, generated: bool, labelled: bool = False) -> dict[Metric, float]:
    """Every metric over all rows; accuracy and macroF1 for rows whose reference is a label.

    Raises ValueError when there is no token to score.
    """
    tokens = sum(a.tokens for a in answers)
    if tokens == 0:
        raise ValueError("no completion token to score")
    loss = sum(a.loss_sum for a in answers) / tokens
    found = {Metric.LOSS: loss, Metric.PERPLEXITY: perplexity(loss)}
    rows = [of_row(a, generated=generated) for a in answers]
    found |= {metric: math.fsum(row[metric] for row in rows) / len(rows) for metric in rows[0]}
    if generated and labelled:
        found |= of_labels([(a.reference, a.answer) for a in answers])
    return {**found, Metric.ENTROPY: sum(a.entropy_sum for a in answers) / tokens}


def of_labels(pairs: Sequence[tuple[str, str]]) -> dict[Metric, float]:
    """accuracy and macroF1 of (label, answer) pairs, both compared after `normalized`."""
    from sklearn.metrics import f1_score

    true = [normalized(label) for label, _ in pairs]
    told = [normalized(answer) for _, answer in pairs]
    right = sum(a == b for a, b in zip(true, told, strict=True))
    macro = f1_score(true, told, labels=sorted(set(true)), average="macro", zero_division=0)
    return {Metric.ACCURACY: right / len(pairs), Metric.MACRO_F1: float(macro)}


def perplexity(loss: float) -> float:
    """e to the loss; the largest float where that overflows, since JSON knows no infinity."""
    return math.exp(min(loss, 709.0))
