"""What the operator's process counts, under the names that controller-runtime and client-go give the same. No object is named
here: series.py has those that name one.

Each series of an error stands from the start, at zero: what is only there once it counts has no rate for its first failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

QUEUE = "finetune-operator"  # both kinds share one queue and its workers
SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
RESULTS = ("success", "requeue", "requeue_after", "error")

RECONCILES = Counter("controller_runtime_reconcile_total", "Passes by result.", ["controller", "result"])
RECONCILE_ERRORS = Counter("controller_runtime_reconcile_errors_total", "Passes that failed.", ["controller"])
RECONCILE_SECONDS = Histogram("controller_runtime_reconcile_time_seconds", "Length of a pass.", ["controller"], buckets=SECONDS)
MAX_WORKERS = Gauge("controller_runtime_max_concurrent_reconciles", "Passes that may run at once.", ["controller"])
ACTIVE_WORKERS = Gauge("controller_runtime_active_workers", "Passes that run now.", ["controller"])
QUEUE_DEPTH = Gauge("workqueue_depth", "Keys that wait for a worker.", ["name"]).labels(QUEUE)
QUEUE_ADDS = Counter("workqueue_adds_total", "Keys that were put into the queue.", ["name"]).labels(QUEUE)
QUEUE_RETRIES = Counter("workqueue_retries_total", "Keys that came back after a failed pass.", ["name"]).labels(QUEUE)
QUEUE_WAITS = Histogram(
    "workqueue_queue_duration_seconds", "How long a key waited for a worker.", ["name"], buckets=SECONDS
).labels(QUEUE)
QUEUE_WORKS = Histogram("workqueue_work_duration_seconds", "How long a worker had a key.", ["name"], buckets=SECONDS).labels(
    QUEUE
)
LONGEST_PASS = Gauge(
    "workqueue_longest_running_processor_seconds", "How long the oldest pass that runs has run.", ["name"]
).labels(QUEUE)
API_REQUESTS = Counter("rest_client_requests_total", "Requests to the API server, watches not counted.", ["method", "code"])
WATCH_EVENTS = Counter("finetune_watch_events_total", "Events of the children's watches, bookmarks included.", ["kind"])
LEADER = Gauge("leader_election_master_status", "1 where this replica acts.", ["name"])
NO_ANSWER = "<error>"  # client-go's code of a request that got none


def begin(kinds: Iterable[str], workers: int) -> None:
    """Put every series of these kinds there, at zero."""
    for kind in kinds:
        MAX_WORKERS.labels(kind).set(workers)
        ACTIVE_WORKERS.labels(kind)
        RECONCILE_ERRORS.labels(kind)
        RECONCILE_SECONDS.labels(kind)
        for result in RESULTS:
            RECONCILES.labels(kind, result)


class ConditionCounts(Collector):
    """`finetune_resources`: number of objects of each kind by condition and status, counted when asked for."""

    def __init__(self, count: Callable[[], Mapping[tuple[str, str, str], int]]) -> None:
        self._count = count
        REGISTRY.register(self)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        labels = ["kind", "condition", "status"]
        family = GaugeMetricFamily("finetune_resources", "Objects by condition and its status.", labels=labels)
        for key, number in sorted(self._count().items()):
            family.add_metric(key, number)
        yield family
