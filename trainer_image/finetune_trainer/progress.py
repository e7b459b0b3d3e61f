"""Progress lines on stdout, which the operator reads from the log's tail, and the same figures for Prometheus."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from finetune_trainer.contract.reports import Progress

GAUGES = {
    "step": "Optimizer steps or rows that are done.",
    "total": "How many it will be in all.",
    "loss": "Training loss of the last reported step.",
    "learning_rate": "Learning rate of that step.",
    "tokens_per_second": "Training speed, padding not counted.",
    "memory_bytes": "The most memory that training has taken on a device.",
    "eta_seconds": "Seconds to the end of this step.",
}

Report = Callable[[Progress], None]


class Reporter:
    """Prints one line each `seconds` at most, but always a new activity and the last unit.

    Every reading reaches `on_reading` (the metrics), also those that are not printed.
    """

    def __init__(
        self,
        seconds: float = 2.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.time,
        on_reading: Report | None = None,
        silent: bool = False,
    ) -> None:
        self._seconds = seconds
        self._stream = stream or sys.stdout
        self._clock = clock
        self._on_reading = on_reading
        self._printed: Progress | None = None
        self._silent = silent

    def __call__(self, reading: Progress) -> None:
        if self._silent:
            return
        reading = reading.model_copy(update={"time": round(reading.time or self._clock(), 3)})
        if self._on_reading is not None:
            self._on_reading(reading)
        if self._is_due(reading):
            self._printed = reading
            line = reading.model_dump(mode="json", by_alias=True, exclude_none=True)
            print(json.dumps(line, separators=(",", ":")), file=self._stream, flush=True)

    def _is_due(self, reading: Progress) -> bool:
        last = self._printed
        return (
            last is None
            or (reading.step_name, reading.activity) != (last.step_name, last.activity)
            or reading.time - last.time >= self._seconds
            or (0 < reading.total == reading.step != last.step)
        )


def serve_metrics(port: int) -> Report | None:
    """Serve finetune_* gauges on /metrics and return the function that sets them; None where the port is taken, as nothing
    that trains must end for want of it."""
    from prometheus_client import CollectorRegistry, Gauge, start_http_server

    registry = CollectorRegistry()
    gauges = {name: Gauge(f"finetune_{name}", text, ["step_name"], registry=registry) for name, text in GAUGES.items()}
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        print(f"no metrics are served on port {port}: {error}", file=sys.stderr)
        return None

    def record(reading: Progress) -> None:
        values: dict[str, Any] = reading.model_dump(include=set(GAUGES), exclude_none=True)
        for name, value in values.items():
            gauges[name].labels(reading.step_name).set(value)

    return record


def make_reporter(metrics_port: int | None, *, silent: bool, also: Report | None = None) -> Reporter:
    """The reporter of this process; serves metrics on the port, where there is one, and tells `also`, unless it is silent."""
    told = [serve_metrics(metrics_port) if metrics_port and not silent else None, also]

    def on_reading(reading: Progress) -> None:
        for tell in filter(None, told):
            tell(reading)

    return Reporter(on_reading=on_reading, silent=silent)
