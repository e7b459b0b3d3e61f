"""The operator's metrics, under the names that dashboards for Go controllers know. No object names in labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

RECONCILES = Counter("controller_runtime_reconcile_total", "Passes by result.", ["controller", "result"])
RECONCILE_ERRORS = Counter("controller_runtime_reconcile_errors_total", "Passes that failed.", ["controller"])
RECONCILE_SECONDS = Histogram("controller_runtime_reconcile_time_seconds", "Length of a pass.", ["controller"])
MAX_WORKERS = Gauge("controller_runtime_max_concurrent_reconciles", "Passes that may run at once.")
ACTIVE_WORKERS = Gauge("controller_runtime_active_workers", "Passes that run now.")
QUEUE_DEPTH = Gauge("workqueue_depth", "Keys that wait for a worker.")
QUEUE_ADDS = Counter("workqueue_adds_total", "Keys that were put into the queue.")
QUEUE_RETRIES = Counter("workqueue_retries_total", "Keys that came back after a failed pass.")
API_REQUESTS = Counter("rest_client_requests_total", "Requests to the API server, watches not counted.", ["method", "code"])
WATCH_EVENTS = Counter("finetune_watch_events_total", "Events of the children's watches, bookmarks included.", ["kind"])
LEADER = Gauge("leader_election_master_status", "1 where this replica acts.", ["name"])


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
