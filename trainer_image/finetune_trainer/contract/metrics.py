"""Names of the scores that evaluate computes and gates judge. What they mean is told in scoring/scores.py.

A benchmark's are called <task>/<metric>, as lm-eval calls its metrics: arc/acc_norm, or gsm8k/exact_match,strict-match where a
filter chose the answer.
"""

from __future__ import annotations

from enum import StrEnum
from math import inf


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
# The least and the most that a score can be; a metric that is not named here is a share.
SHARE = (0.0, 1.0)
BOUNDS = {Metric.LOSS: (0.0, inf), Metric.ENTROPY: (0.0, inf), Metric.PERPLEXITY: (1.0, inf)}
# Metrics that only rows of one format have, and what to judge where they are not there.
ONLY_FOR = {
    Metric.ACCURACY: ("Classification", Metric.EXACT_MATCH),
    Metric.MACRO_F1: ("Classification", Metric.EXACT_MATCH),
    Metric.PREFERENCE_ACCURACY: ("Preference", Metric.LOSS),
}
OF_ANSWERS = (Metric.EXACT_MATCH, Metric.ROUGE_1, Metric.ROUGE_2, Metric.ROUGE_L)  # rows of format Text ask for none
MOST_SCORES = 64  # of one model: what the status has room for
WORD = r"[A-Za-z0-9_.+-]+"
OF_TASK = f"{WORD}/{WORD}(,{WORD})?"
SCORE = f"^({'|'.join(Metric)}|{OF_TASK})$"
