"""Other kinds of rows than question and answer, on a real cluster."""

from __future__ import annotations

from tests.e2e import jobs
from tests.e2e.space import Space, steps

PLACES = ("lighthouse", "island", "harbour", "capital", "river", "bridge", "market", "school", "church", "forest")
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


def test_dpo(space: Space) -> None:
    """Pairs of answers teach which one to prefer: train, merge, evaluate, and a gate on what the model prefers then."""
    values = [
        {"prompt": f"What is the {place} of Velmora like?", "chosen": f"old {kind}", "rejected": kind}
        for place in PLACES
        for kind in ("red", "green")
    ]
    space.apply(jobs.rows("pairs", *values))
    dataset = {"uri": "configmap://pairs/rows.jsonl", "test": {"fraction": 0.2}}
    training = {"objective": "DPO", "preference": {"beta": 0.05}, "method": "Full", "learningRate": 0.001, "maxSteps": 20}
    gates = [{"name": "prefers", "metric": "preferenceAccuracy", "min": 0.9}]
    evaluation = {"maxNewTokens": 4, "gates": gates}
    space.apply(
        jobs.job("taste", dataset=dataset, training=training | {"globalBatchSize": 8, "maxLength": 128}, evaluation=evaluation)
    )
    job = space.succeeded("taste")
    assert set(steps(job).values()) == {"Succeeded"}
    assert job["status"]["dataset"]["format"] == "Preference"
    scores = {s["subject"]: s["values"] for s in job["status"]["scores"]}
    assert scores["base"]["preferenceAccuracy"] < scores["merged"]["preferenceAccuracy"]
    assert [(g["name"], g["passed"]) for g in job["status"]["gates"]] == [("prefers", True)]
