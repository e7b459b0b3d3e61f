"""A step as spans of its job's trace, where the operator names a collector: the step, and below it what it did, one thing
after the other. No step fails, or waits for more than a few seconds, because of a collector: what can't be sent is lost.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_trainer.contract import traces
from finetune_trainer.contract.reports import Progress
from finetune_trainer.contract.traces import Place
from finetune_trainer.environment import Pod

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

SERVICE = "finetune-trainer"


@dataclass
class StepTrace:
    """What a process tells of its step. Of several ranks the first tells what they do, and the process that started them
    tells of the step: so both must know its place."""

    place: Place
    told: dict[str, str]
    processor: SpanProcessor
    activity: str = ""
    since: int = field(default_factory=time.time_ns)

    def reading(self, progress: Progress) -> None:
        """Note what goes on now; something else than before ends the span of that."""
        if progress.activity != self.activity:
            self.end_activity()
            self.activity, self.since = progress.activity, time.time_ns()

    def end_activity(self) -> None:
        """Tell of what went on until now."""
        if self.activity:
            self.end(self.activity, self.place.below(f"{self.activity} {self.since}"), self.place, self.since)
        self.activity = ""

    def end(self, name: str, place: Place, parent: Place, begin: int, error: str = "") -> None:
        self.processor.on_end(traces.span(SERVICE, name, place, parent, (begin, time.time_ns()), self.told, error))


@contextmanager
def of_step(step: str, pod: Pod, *, is_rank: bool) -> Iterator[StepTrace | None]:
    """The trace of a step that runs in the block; None where there is no collector, or no way to one."""
    parent = traces.read(pod.traceparent)
    trace = _open(step, pod, parent) if pod.otlp_endpoint and parent else None
    if trace is None or parent is None:
        yield None
        return
    begin, error = time.time_ns(), ""
    try:
        yield trace
    except BaseException as failure:
        error = "the pod was told to stop" if isinstance(failure, SystemExit) else f"{type(failure).__name__}: {failure}"
        raise
    finally:
        trace.end_activity()
        if not is_rank:
            trace.end(step, trace.place, parent, begin, error)
        trace.processor.shutdown()


def _open(step: str, pod: Pod, parent: Place) -> StepTrace | None:
    try:
        processor = traces.sender(pod.otlp_endpoint)
    except ImportError as error:
        print(f"no trace is sent: this image lacks {error.name}", file=sys.stderr)
        return None
    print(f"this step is part of the trace {parent.trace:032x}", file=sys.stderr)
    told = {"finetune.step": step, "finetune.attempt": pod.attempt, "finetune.node": str(pod.node_rank)}
    return StepTrace(parent.below(f"{step} {pod.node_rank}"), told, processor)
