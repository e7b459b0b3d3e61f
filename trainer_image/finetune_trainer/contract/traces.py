"""One trace for an object and all that is done for it, by operator and pods: how its spans are numbered, and how they are told.

Numbers follow from names, so that whoever tells of a span, or makes something below it, needs to ask nobody. OpenTelemetry is
loaded where spans are sent, and there alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

SEND_SECONDS = 5  # for which an answer of the collector is waited
SAMPLED = 1


@dataclass(frozen=True)
class Place:
    """A span's trace and number."""

    trace: int
    span: int

    @property
    def traceparent(self) -> str:
        """The same as W3C's Trace Context writes it."""
        return f"00-{self.trace:032x}-{self.span:016x}-{SAMPLED:02x}"

    def below(self, name: str) -> Place:
        """The place of what has this name among all that is below this span."""
        return Place(self.trace, _number(f"{self.span:016x}/{name}", 8))


def place_of(uid: str, *names: str) -> Place:
    """The place of an object, or of what has these names below it."""
    place = Place(_number(uid, 16), _number(f"{uid}/", 8))
    for name in names:
        place = place.below(name)
    return place


def read(traceparent: str) -> Place | None:
    """The place that a `version-trace-span-flags` names; None where it is none."""
    parts = traceparent.split("-")
    if [len(part) for part in parts] != [2, 32, 16, 2]:
        return None
    try:
        return Place(int(parts[1], 16), int(parts[2], 16))
    except ValueError:
        return None


def sender(endpoint: str) -> SpanProcessor:
    """Sends spans to a collector by OTLP over HTTP, some at once. Raises ImportError where OpenTelemetry is not installed."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=SEND_SECONDS))


def span(
    service: str,
    name: str,
    place: Place,
    parent: Place | None,
    times: tuple[int, int],
    attributes: Mapping[str, str],
    error: str = "",
) -> ReadableSpan:
    """A span that has ended, in nanoseconds since 1970."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

    def context(of: Place) -> SpanContext:
        return SpanContext(of.trace, of.span, is_remote=False, trace_flags=TraceFlags(SAMPLED))

    return ReadableSpan(
        name=name,
        context=context(place),
        parent=None if parent is None else context(parent),
        resource=Resource.create({"service.name": service}),
        attributes=attributes,
        status=Status(StatusCode.ERROR, error) if error else Status(StatusCode.UNSET),
        start_time=times[0],
        end_time=times[1],
    )


def _number(text: str, size: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size])
