"""Series that name an object: what the statuses of FineTuneJobs and ModelServes say, and whose pods run.

    cache ─► the objects at work, then those that changed last, MOST of each kind ─► samples ─► families

They are made from the cache when Prometheus asks, so that nothing is kept twice and what is deleted is gone. The values stay
after a pod's end: a pod that lived for less than the time between two scrapes is told of here. docs/metrics.md states the
number of series that this comes to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_operator.cache import KINDS, Children, Own
from finetune_operator.meta import ENDED, Object
from finetune_operator.names import LABEL_REVISION, LABEL_STEP

MOST = 1000  # objects of each kind that have series
MOST_PODS = 5000
OBJECT = ("namespace", "name")

# family: what it says, and its labels. One that ends in _total is a counter.
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "finetune_condition": ("1 while the condition is True, else 0.", ("kind", *OBJECT, "condition", "reason")),
    "finetune_job_step": ("Optimizer steps or rows that the step at work, or the last one, has done.", (*OBJECT, "step_name")),
    "finetune_job_steps": ("How many it will be in all.", (*OBJECT, "step_name")),
    "finetune_job_loss": ("Training loss: the last reported, then that of the last tenth of all steps.", OBJECT),
    "finetune_job_learning_rate": ("Learning rate of the last reported step.", OBJECT),
    "finetune_job_tokens_per_second": ("Training speed as last reported, then over all of it.", OBJECT),
    "finetune_job_eta_seconds": ("Seconds to the end of the step at work.", OBJECT),
    "finetune_job_memory_bytes": ("The most memory that training has taken on a device.", OBJECT),
    "finetune_job_reported_timestamp_seconds": ("When the pod at work last reported.", OBJECT),
    "finetune_job_gpu_seconds_total": ("GPUs held times seconds, over all attempts that have ended.", OBJECT),
    "finetune_job_failed_timestamp_seconds": ("When an attempt last failed, and why.", (*OBJECT, "step_name", "reason")),
    "finetune_gate_passed": ("1 where the gate was passed, 0 where it was not.", (*OBJECT, "gate", "action")),
    "finetune_serve_replicas": ("Pods of the live revision that are ready.", OBJECT),
    "finetune_serve_wanted_replicas": ("Pods that the spec asks for; 0 while it is suspended.", OBJECT),
    "finetune_serve_revision": ("1 for the live revision and for the candidate.", (*OBJECT, "role", "revision", "state")),
    "finetune_pod": (
        "1 for each pod of ours that has not ended.",
        ("namespace", "pod", "kind", "name", "step_name", "revision"),
    ),
    "finetune_objects_without_series": ("Objects beyond those that are named here.", ("kind",)),
}


class Sample(NamedTuple):
    family: str
    labels: tuple[str, ...]  # their values, in the order of FAMILIES
    value: float


class Series(Collector):
    """The families above, made from the cache at each scrape."""

    def __init__(self, own: Own, children: Children) -> None:
        self._own = own
        self._children = children

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            name: (CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily)(name, text, labels=labels)
            for name, (text, labels) in FAMILIES.items()
        }
        for sample in self._samples():
            families[sample.family].add_metric(sample.labels, sample.value)
        return families.values()

    def _samples(self) -> Iterator[Sample]:
        for kind in KINDS:
            yield Sample("finetune_objects_without_series", (kind,), max(0, len(self._own.keys(kind)) - MOST))
            for body in self._own.latest(kind, MOST):
                yield from samples(body)
        for pod in self._children.latest("Pod", MOST_PODS):
            yield from self._of_pod(pod)

    def _of_pod(self, pod: Object) -> Iterator[Sample]:
        owner = next(iter(self._own.owners(pod)), None)
        if owner is not None and (pod.get("status") or {}).get("phase") not in ENDED:
            metadata = pod["metadata"]
            of_what = (metadata["labels"].get(LABEL_STEP, ""), metadata["labels"].get(LABEL_REVISION, ""))
            yield Sample("finetune_pod", (metadata["namespace"], metadata["name"], owner.kind, owner.name, *of_what), 1)


def samples(body: Object) -> Iterator[Sample]:
    """What one FineTuneJob or ModelServe has to tell. `body` is as the API server keeps it, so of its definition's shape."""
    status, name = body.get("status") or {}, (body["metadata"]["namespace"], body["metadata"]["name"])
    for one in status.get("conditions") or ():
        labels = (body["kind"], *name, one["type"], one.get("reason", ""))
        yield Sample("finetune_condition", labels, one["status"] == "True")
    yield from (_of_job(name, status) if body["kind"] == "FineTuneJob" else _of_serve(name, status, body.get("spec") or {}))


def _of_job(name: tuple[str, str], status: dict[str, Any]) -> Iterator[Sample]:
    progress, trained, fit = (status.get(field) or {} for field in ("progress", "training", "fit"))
    if progress:
        yield Sample("finetune_job_step", (*name, progress["step"]), progress.get("current", 0))
        yield Sample("finetune_job_steps", (*name, progress["step"]), progress.get("total", 0))
    known = {
        "loss": progress.get("loss"),
        "learning_rate": progress.get("learningRate"),
        "tokens_per_second": progress.get("tokensPerSecond", _speed(trained)),
        "eta_seconds": progress.get("etaSeconds"),
        "memory_bytes": fit.get("measuredBytes", trained.get("peakMemoryBytes")),
        "reported_timestamp_seconds": _seconds(progress.get("updatedAt")),
        "gpu_seconds_total": status.get("gpuSeconds", 0),
    }
    yield from (Sample(f"finetune_job_{of}", name, value) for of, value in known.items() if value is not None)
    if (failure := status.get("lastFailure")) is not None and (at := _seconds(failure.get("time"))) is not None:
        yield Sample("finetune_job_failed_timestamp_seconds", (*name, failure["step"], failure["reason"]), at)
    for gate in status.get("gates") or ():
        yield Sample("finetune_gate_passed", (*name, gate["name"], gate["action"]), gate["passed"])


def _of_serve(name: tuple[str, str], status: dict[str, Any], spec: dict[str, Any]) -> Iterator[Sample]:
    yield Sample("finetune_serve_replicas", name, status.get("replicas", 0))
    yield Sample("finetune_serve_wanted_replicas", name, 0 if spec.get("suspend") else spec.get("replicas", 1))
    for role in ("live", "candidate"):
        if (revision := status.get(role)) is not None:
            yield Sample("finetune_serve_revision", (*name, role, revision["name"], revision["state"]), 1)


def _speed(trained: dict[str, Any]) -> float | None:
    """Tokens per second of a training that has ended in one attempt: its tokens are all of them, its seconds the last one's."""
    whole = trained.get("seconds") and not trained.get("resumedFromStep")
    return trained["tokens"] / trained["seconds"] if whole else None


def _seconds(stamp: str | None) -> float | None:
    """Seconds since the epoch of a time of the API; None for what is none."""
    try:
        return None if stamp is None else datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return None
