"""Names of the scores that evaluate computes and gates judge. What they mean is told in scores.py."""

from __future__ import annotations

from enum import StrEnum


class Metric(StrEnum):
    LOSS = "loss"
    PERPLEXITY = "perplexity"
    EXACT_MATCH = "exactMatch"
    ROUGE_1 = "rouge1"
    ROUGE_2 = "rouge2"
    ROUGE_L = "rougeL"
    ACCURACY = "accuracy"
    MACRO_F1 = "macroF1"
    ENTROPY = "entropy"
    PREFERENCE_ACCURACY = "preferenceAccuracy"


LOWER_IS_BETTER = frozenset({Metric.LOSS, Metric.PERPLEXITY, Metric.ENTROPY})
# Metrics that only rows of one format have, and what to judge where they are not there.
ONLY_FOR = {
    Metric.ACCURACY: ("Classification", Metric.EXACT_MATCH),
    Metric.MACRO_F1: ("Classification", Metric.EXACT_MATCH),
    Metric.PREFERENCE_ACCURACY: ("Preference", Metric.LOSS),
}
