"""Names of the scores that evaluate computes and gates judge."""

from __future__ import annotations

from enum import StrEnum


class Metric(StrEnum):
    LOSS = "loss"
    PERPLEXITY = "perplexity"
    EXACT_MATCH = "exactMatch"
    ROUGE_L = "rougeL"


LOWER_IS_BETTER = frozenset({Metric.LOSS, Metric.PERPLEXITY})
