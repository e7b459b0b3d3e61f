"""Verdicts from scores: which bound, in which direction, with which numbers in the message."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from tests.builders import make_scores

from finetune_operator.api.evaluation import Gate
from finetune_operator.finetunejob.gates import blocking, problems, unscored, verdicts
from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.objectives import Objective
from finetune_trainer.contract.reports import Scores

SCORES = [
    make_scores("base", loss=3.0, exact_match=0.1),
    make_scores("merged", loss=0.5, exact_match=0.9),
    make_scores("q4", loss=0.6, exact_match=0.8),
]

ROWS: list[tuple[dict[str, Any], bool, str]] = [
    ({"metric": "exactMatch", "min": 0.9}, True, "exactMatch of merged is 0.9, must be at least 0.9"),
    ({"metric": "exactMatch", "min": 0.91}, False, "exactMatch of merged is 0.9, must be at least 0.91"),
    ({"metric": "loss", "max": 0.5}, True, "loss of merged is 0.5, must be at most 0.5"),
    ({"metric": "loss", "max": 0.4}, False, "loss of merged is 0.5, must be at most 0.4"),
    ({"metric": "loss", "minImprovementOverBase": 2.5}, True, "must be at least 2.5 better than base's 3"),
    ({"metric": "loss", "minImprovementOverBase": 2.6}, False, "must be at least 2.6 better than base's 3"),
    ({"metric": "exactMatch", "minImprovementOverBase": 0.8}, True, "must be at least 0.8 better than base's 0.1"),
    ({"metric": "exactMatch", "minImprovementOverBase": 0.85}, False, "must be at least 0.85 better than base's 0.1"),
    ({"metric": "loss", "artifact": "q4", "maxRegressionFromMerged": 0.1}, True, "at most 0.1 worse than merged's 0.5"),
    ({"metric": "loss", "artifact": "q4", "maxRegressionFromMerged": 0.05}, False, "at most 0.05 worse than merged's"),
    ({"metric": "loss", "artifact": "q4", "maxRegressionFromMerged": 0}, False, "must be not worse than merged's 0.5"),
    ({"metric": "exactMatch", "artifact": "q4", "maxRegressionFromMerged": 0.1}, True, "worse than merged's 0.9"),
    ({"metric": "rougeL", "min": 0.1}, False, "merged has no rougeL score"),
    ({"metric": "accuracy", "min": 0.1}, False, "merged has no accuracy score; it is for rows of format Classification"),
    ({"metric": "accuracy", "artifact": "gone", "min": 0.1}, False, "gone has no accuracy score; are there test rows?"),
    ({"metric": "preferenceAccuracy", "min": 0.1}, False, "it is for rows of format Preference: judge loss"),
    ({"metric": "loss", "artifact": "gone", "max": 1}, False, "gone has no loss score"),
]


@pytest.mark.parametrize(("gate", "passed", "message"), ROWS)
def test_gates(gate: dict[str, Any], passed: bool, message: str) -> None:
    (verdict,) = verdicts([Gate.model_validate({"name": "g", **gate})], SCORES)
    assert verdict.passed is passed
    assert message in verdict.message


ON_TASKS = [
    Scores(subject=s, samples=20, values={"arc/acc": acc, "wiki/perplexity": p}, lower_is_better=("wiki/perplexity",))
    for s, acc, p in (("base", 0.5, 9.0), ("merged", 0.75, 8.0))
] + [make_scores("q4", loss=1.0)]


@pytest.mark.parametrize(
    ("gate", "passed", "message"),
    [
        ({"metric": "arc/acc", "min": 0.75}, True, "arc/acc of merged is 0.75, must be at least 0.75"),
        ({"metric": "arc/acc", "min": 0.76}, False, "arc/acc of merged is 0.75, must be at least 0.76"),
        ({"metric": "arc/acc", "minImprovementOverBase": 0.25}, True, "at least 0.25 better than base's 0.5"),
        ({"metric": "arc/acc", "minImprovementOverBase": 0.3}, False, "at least 0.3 better than base's 0.5"),
        ({"metric": "wiki/perplexity", "max": 8}, True, "must be at most 8"),
        ({"metric": "wiki/perplexity", "minImprovementOverBase": 1}, True, "must be at least 1 better than base's 9"),
        ({"metric": "wiki/perplexity", "minImprovementOverBase": 1.1}, False, "must be at least 1.1 better than base's 9"),
        ({"metric": "arc/f1", "min": 0}, False, "merged has no arc/f1 score; its tasks have arc/acc, wiki/perplexity"),
        ({"metric": "arc/acc", "artifact": "q4", "min": 0}, False, "q4 has no arc/acc score; it was scored on no task"),
        ({"metric": "arc/acc", "artifact": "gone", "min": 0}, False, "gone has no arc/acc score; are there test rows?"),
    ],
)
def test_gates_on_tasks(gate: dict[str, Any], passed: bool, message: str) -> None:
    (verdict,) = verdicts([Gate.model_validate({"name": "g", **gate})], ON_TASKS)
    assert verdict.passed is passed
    assert message in verdict.message


@pytest.mark.parametrize("name", ["rougeX", "lossy", "loss/", "/acc", "arc/acc/x", "arc/acc,", "arc acc/x", "Loss"])
def test_a_gate_on_no_score_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="metric"):
        Gate.model_validate({"name": "g", "metric": name, "min": 0.1})


@pytest.mark.parametrize("name", ["loss", "preferenceAccuracy", "arc/acc", "mmlu_pro/exact_match,custom-extract", "wmt/chrf++"])
def test_a_gate_on_a_score_is_taken(name: str) -> None:
    assert Gate.model_validate({"name": "g", "metric": name, "min": 0.1}).metric == name


@pytest.mark.parametrize(("loss", "passed"), [(2.9, True), (3.0, True), (3.1, False)])
def test_without_gates_the_loss_must_not_be_above_the_base_s(loss: float, passed: bool) -> None:
    (verdict,) = verdicts([], [SCORES[0], make_scores("merged", loss=loss)])
    assert (verdict.name, verdict.passed) == ("not-worse-than-base", passed)


@pytest.mark.parametrize(("accuracy", "passed"), [(0.7, True), (0.6, True), (0.5, False)])
def test_without_gates_preferences_are_judged_by_themselves(accuracy: float, passed: bool) -> None:
    """DPO may cost the chosen answers likelihood while it makes the rejected ones far less likely."""
    scores = [
        Scores(subject=subject, samples=20, values={Metric.LOSS: loss, Metric.PREFERENCE_ACCURACY: preferred})
        for subject, loss, preferred in (("base", 1.0, 0.6), ("merged", 1.2, accuracy))
    ]
    (verdict,) = verdicts([], scores, Objective.DPO)
    assert (verdict.name, verdict.passed) == ("not-worse-than-base", passed)
    assert "preferenceAccuracy of merged" in verdict.message


@pytest.mark.parametrize(("loss", "passed"), [(2.9, True), (3.1, False)])
def test_without_gates_unpaired_preferences_are_judged_by_the_loss_on_desirable_answers(loss: float, passed: bool) -> None:
    (verdict,) = verdicts([], [SCORES[0], make_scores("merged", loss=loss)], Objective.KTO)
    assert (verdict.name, verdict.passed) == ("not-worse-than-base", passed)
    assert "loss of merged" in verdict.message


def test_without_scores_and_gates_there_is_nothing_to_judge() -> None:
    assert verdicts([], []) == []


def test_a_score_that_the_other_one_lacks_compares_with_nothing() -> None:
    only_merged = [Scores(subject="base", samples=20, values={}), make_scores("merged", loss=0.5)]
    (verdict,) = verdicts([Gate(name="g", metric=Metric.LOSS, min_improvement_over_base=0.1)], only_merged)
    assert not verdict.passed
    assert verdict.message == "loss of merged is 0.5, but base has no loss score to compare with"


def test_only_failed_gates_that_block_are_blocking() -> None:
    bound: dict[str, Any] = {"metric": Metric.LOSS, "max": 0.1}
    gates = [Gate(name="a", **bound), Gate(name="b", action="Warn", **bound), Gate(name="c", metric="loss", max=1)]
    assert [v.name for v in blocking(verdicts(gates, SCORES))] == ["a"]


@pytest.mark.parametrize(
    ("bound", "sentence"),
    [
        ({"metric": "exactMatch", "min": 1}, None),
        ({"metric": "exactMatch", "min": 1.01}, "min is 1.01, but exactMatch is 1 at most"),
        ({"metric": "exactMatch", "minImprovementOverBase": 1}, None),
        ({"metric": "loss", "max": 0}, None),
        ({"metric": "perplexity", "max": 1}, None),
        ({"metric": "perplexity", "max": 0.99}, "max is 0.99, but perplexity is 1 at least"),
        ({"metric": "task/acc", "min": 7}, None),
    ],
)
def test_a_bound_that_no_model_can_reach_is_told(bound: dict[str, Any], sentence: str | None) -> None:
    said = list(problems([Gate.model_validate({"name": "g", **bound})]))
    assert len(said) == (sentence is not None)
    assert sentence is None or said[0].startswith(f"spec.evaluation.gates[] g: {sentence}")


@pytest.mark.parametrize(
    ("metric", "format", "sentence"),
    [
        ("accuracy", "Classification", None),
        (
            "accuracy",
            "Messages",
            "the rows are Messages, and accuracy is for rows of format Classification: judge exactMatch, or",
        ),
        ("preferenceAccuracy", "Preference", None),
        (
            "preferenceAccuracy",
            "UnpairedPreference",
            "the rows are UnpairedPreference, and preferenceAccuracy is for rows of format",
        ),
        ("exactMatch", "Messages", None),
        ("exactMatch", "Text", "the rows are Text, which ask nothing, so that there are no answers for exactMatch: judge loss"),
        ("rougeL", "Text", "the rows are Text, which ask nothing, so that there are no answers for rougeL: judge loss"),
        ("perplexity", "Text", None),
        ("task/acc", "Text", None),
    ],
)
def test_a_score_that_such_rows_do_not_give_is_told_once_they_are_seen(metric: str, format: str, sentence: str | None) -> None:
    said = list(unscored([Gate(name="g", metric=metric, min=0.5)], DatasetFormat(format)))
    assert len(said) == (sentence is not None)
    assert sentence is None or said[0].startswith(f"spec.evaluation.gates[] g: {sentence}")
