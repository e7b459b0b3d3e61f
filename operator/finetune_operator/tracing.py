"""Traces by OpenTelemetry, where an endpoint is set: all that became of an object is one trace.

the object, at its first pass ─► each pass that wrote or failed ─► each Job that it made ─► the step, told by the Job's pod

An operator that starts anew goes on with the same trace: contract/traces.py says how spans are numbered.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from finetune_operator.meta import Key, Object
from finetune_trainer.contract import traces
from finetune_trainer.contract.traces import Place

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

SERVICE = "finetune-operator"


@dataclass
class Pass:
    """A pass that is running. `outcome` is what became of it; a pass of which there is nothing to tell has none."""

    root: Place
    place: Place
    outcome: str = ""
    error: str = ""

    def failed(self, error: Exception) -> None:
        """Note that the pass ended with an error."""
        self.outcome, self.error = "failed", f"{type(error).__name__}: {error}"


_running: ContextVar[Pass | None] = ContextVar("running", default=None)


@dataclass(frozen=True)
class Traces:
    """Tells of passes and Jobs by a processor of OpenTelemetry's; without one it tells nothing."""

    processor: SpanProcessor | None = None

    @contextmanager
    def a_pass(self, key: Key, body: Object | None) -> Iterator[Pass]:
        """The span of a pass, and its trace in all that is logged meanwhile."""
        begin, root = time.time_ns(), traces.place_of(body["metadata"]["uid"] if body else "")
        running = Pass(root, root.below(f"pass {begin}"))
        if self.processor is None or body is None:
            yield running
            return
        told = {"k8s.namespace.name": key.namespace, "finetune.kind": key.kind, "finetune.name": key.name}
        token, is_first = _running.set(running), not (body.get("status") or {}).get("conditions")
        try:
            with structlog.contextvars.bound_contextvars(trace_id=f"{root.trace:032x}"):
                yield running
        finally:
            _running.reset(token)
            if running.outcome and is_first:
                self._end(f"{key.kind} {key.name}", root, None, begin, told)
            if running.outcome:
                told |= {"finetune.outcome": running.outcome}
                self._end("reconcile", running.place, root, begin, told, running.error)

    @contextmanager
    def creating(self, body: Object) -> Iterator[None]:
        """The span of a Job that the running pass makes; what its pods tell is below it."""
        begin = time.time_ns()
        yield
        running, name = _running.get(), body["metadata"]["name"]
        if running is not None and body["kind"] == "Job":
            told = {"k8s.job.name": name, "k8s.namespace.name": body["metadata"]["namespace"]}
            self._end(f"create Job {name}", running.root.below(name), running.place, begin, told)

    def stop(self) -> None:
        """Send what was not sent yet, for a few seconds at most."""
        if self.processor is not None:
            self.processor.shutdown()

    def _end(self, name: str, place: Place, parent: Place | None, begin: int, told: dict[str, str], error: str = "") -> None:
        assert self.processor is not None
        self.processor.on_end(traces.span(SERVICE, name, place, parent, (begin, time.time_ns()), told, error))


SILENT = Traces()


def start(endpoint: str) -> Traces:
    """Traces that go to an endpoint; none where it is empty. Raises ValueError where that can't be."""
    if not endpoint:
        return SILENT
    if not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"FINETUNE_OTLP_ENDPOINT={endpoint!r} is no address of a collector: write it as http://collector:4318")
    try:
        return Traces(traces.sender(endpoint))
    except ImportError as error:
        text = f"FINETUNE_OTLP_ENDPOINT is set, but {error.name} is missing: install finetune-operator[tracing]"
        raise ValueError(text) from None
