"""Series that name objects: what a status says is told, in bounded number, and is gone with its object."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.builders import NOW, make_job, stamp
from tests.serving import make_serve

from finetune_operator import series
from finetune_operator.cache import Children, Own, key_of
from finetune_operator.meta import Object
from finetune_operator.series import FAMILIES, Series, samples

STATUS: dict[str, Any] = {
    "conditions": [
        {"type": "Ready", "status": "False", "reason": "Training", "message": "", "lastTransitionTime": stamp()},
        {"type": "Reconciling", "status": "True", "reason": "Training", "message": "", "lastTransitionTime": stamp()},
    ],
    "progress": {
        "step": "train",
        "current": 7,
        "total": 40,
        "loss": 0.25,
        "learningRate": 0.001,
        "tokensPerSecond": 90.5,
        "etaSeconds": 12,
        "updatedAt": stamp(),
    },
    "fit": {"predictedBytes": 9, "measuredBytes": 8, "microBatchSize": 1, "gradientCheckpointing": "Off"},
    "gpuSeconds": 30,
    "lastFailure": {"step": "train", "attempt": 1, "reason": "Hang", "message": "", "time": stamp()},
    "gates": [{"name": "better", "passed": False, "action": "Block", "message": ""}],
}


def told(body: Object) -> dict[str, tuple[tuple[str, ...], float]]:
    return {sample.family: (sample.labels, sample.value) for sample in samples(body)}


def test_a_job_at_work_tells_where_it_is() -> None:
    name = ("default", "facts")
    assert told(make_job(status=STATUS)) == {
        "finetune_condition": (("FineTuneJob", *name, "Reconciling", "Training"), 1),
        "finetune_job_step": ((*name, "train"), 7),
        "finetune_job_steps": ((*name, "train"), 40),
        "finetune_job_loss": (name, 0.25),
        "finetune_job_learning_rate": (name, 0.001),
        "finetune_job_tokens_per_second": (name, 90.5),
        "finetune_job_eta_seconds": (name, 12),
        "finetune_job_memory_bytes": (name, 8),
        "finetune_job_reported_timestamp_seconds": (name, NOW.timestamp()),
        "finetune_job_gpu_seconds_total": (name, 30),
        "finetune_job_failed_timestamp_seconds": ((*name, "train", "Hang"), NOW.timestamp()),
        "finetune_gate_passed": ((*name, "better", "Block"), 0),
    }


@pytest.mark.parametrize(("resumed", "speed"), [(0, 50.0), (3, None)])
def test_a_training_that_no_scrape_met_is_told_of_by_its_result(resumed: int, speed: float | None) -> None:
    trained = {"steps": 9, "loss": 0.5, "tokens": 500, "seconds": 10, "peakMemoryBytes": 77, "resumedFromStep": resumed}
    found = told(make_job(status={"progress": {"step": "train", "loss": 0.5}, "training": trained}))
    assert found["finetune_job_loss"][1] == 0.5
    assert found["finetune_job_memory_bytes"][1] == 77
    assert found.get("finetune_job_tokens_per_second", ((), None))[1] == speed


def test_a_status_that_says_nothing_yet_is_no_fault() -> None:
    assert told(make_job()) == {"finetune_job_gpu_seconds_total": (("default", "facts"), 0)}


def test_a_served_model_tells_of_its_pods_and_revisions() -> None:
    body = make_serve(replicas=3) | {"status": {"replicas": 1, "live": {"name": "abc", "state": "Live"}}}
    name = ("default", body["metadata"]["name"])
    assert told(body) == {
        "finetune_serve_replicas": (name, 1),
        "finetune_serve_wanted_replicas": (name, 3),
        "finetune_serve_revision": ((*name, "live", "abc", "Live"), 1),
    }
    assert told(make_serve(suspend=True, replicas=3))["finetune_serve_wanted_replicas"] == (name, 0)


class Scene:
    """What the cache holds, and what Prometheus reads of it."""

    def __init__(self) -> None:
        self.own, self.children = Own(), Children()
        self.registry = CollectorRegistry()
        self.registry.register(Series(self.own, self.children))
        self.version = 0

    def keep(self, body: Object) -> Object:
        self.version += 1
        body["metadata"] |= {"uid": f"uid-{body['metadata']['name']}", "resourceVersion": str(self.version)}
        (self.own if body["kind"] == "FineTuneJob" else self.children).keep(body)
        return body

    def lines(self, family: str) -> list[str]:
        return [line for line in generate_latest(self.registry).decode().splitlines() if line.startswith(family + "{")]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MOST", 2)


def over(state: str) -> dict[str, Any]:
    return {"conditions": [{"type": state, "status": "True", "reason": state}]}


@pytest.mark.usefixtures("few")
def test_there_are_series_for_what_is_at_work_and_then_for_what_changed_last() -> None:
    scene = Scene()
    for name, status in {"working": {}, "old": over("Succeeded"), "failed": over("Failed"), "new": over("Succeeded")}.items():
        scene.keep(make_job(name, status=status))
    named = [line.partition('name="')[2].partition('"')[0] for line in scene.lines("finetune_job_gpu_seconds_total")]
    assert sorted(named) == ["new", "working"]
    assert 'finetune_objects_without_series{kind="FineTuneJob"} 2.0' in scene.lines("finetune_objects_without_series")


def test_what_is_deleted_has_no_series() -> None:
    scene = Scene()
    body = scene.keep(make_job(status=STATUS))
    assert scene.lines("finetune_job_loss")
    scene.own.drop(key_of(body), body["metadata"]["uid"], 9)
    assert not scene.lines("finetune_job_loss")


def test_a_pod_has_a_series_with_its_owner_until_it_ends() -> None:
    scene = Scene()
    labels = {"finetune.dev/job": "facts", "finetune.dev/step": "train"}

    def pod(phase: str) -> Object:
        metadata = {"name": "facts-train-1", "namespace": "default", "labels": labels}
        return {"kind": "Pod", "metadata": metadata, "status": {"phase": phase}}

    scene.keep(pod("Running"))
    (line,) = scene.lines("finetune_pod")
    assert {'pod="facts-train-1"', 'kind="FineTuneJob"', 'name="facts"', 'step_name="train"'} < set(
        re.findall(r'\w+="[^"]*"', line)
    )
    scene.keep(pod("Succeeded"))
    assert not scene.lines("finetune_pod")


def test_each_family_is_what_prometheus_takes() -> None:
    scene = Scene()
    text = generate_latest(scene.registry).decode()
    for name, (_, labels) in FAMILIES.items():
        assert f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}" in text
        assert len(set(labels)) == len(labels)


def test_the_page_names_each_family() -> None:
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    assert [name for name in FAMILIES if f"`{name}`" not in page] == []
