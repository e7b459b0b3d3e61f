"""Other kinds of rows than question and answer, on a real cluster."""

from __future__ import annotations

from tests.e2e import jobs
from tests.e2e.space import Space, steps

MOODS = {"0": ("wet", "rain", "fog", "hail"), "1": ("dry", "sun", "heat", "dust")}


def test_classification(space: Space) -> None:
    """Stored labels become words, the split keeps both labels, and accuracy and macro-F1 are scored and gated."""
    values = [
        {"text": f"The harbour log of day {day} says: {word}.", "label": label}
        for label, words in MOODS.items()
        for word in words
        for day in range(5)
    ]
    space.apply(jobs.rows("logs", *values))
    dataset = {"uri": "configmap://logs/rows.jsonl", "labels": {"0": "bad", "1": "good"}, "test": {"fraction": 0.2}}
    gates = [{"name": "scored", "metric": "macroF1", "min": 0}]
    space.apply(jobs.job("moods", dataset=dataset, evaluation={"maxNewTokens": 4, "gates": gates}))
    job = space.succeeded("moods")
    assert set(steps(job).values()) == {"Succeeded"}
    assert job["status"]["dataset"]["format"] == "Classification"
    assert job["status"]["dataset"]["testRows"] == 8
    scores = {s["subject"]: s["values"] for s in job["status"]["scores"]}
    assert 0 <= scores["base"]["accuracy"] <= scores["merged"]["accuracy"] <= 1
    assert [(g["name"], g["passed"]) for g in job["status"]["gates"]] == [("scored", True)]
