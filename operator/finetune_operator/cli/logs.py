"""The logs of a FineTuneJob across its steps and attempts, in the order in which they ran. Pure: what is read is in pods, and
in the artifact store.

A pod goes a few minutes after its step has ended (the chart's endedSeconds), and its log lies in the store then. What is in
neither place is said, so that no log is taken for the whole of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from finetune_operator.api.finetunejob_status import FineTuneJobStatus
from finetune_operator.cli.words import describe, reported
from finetune_operator.finetunejob.observed import COMPLETION_INDEX
from finetune_operator.meta import Object
from finetune_operator.names import LABEL_ATTEMPT, LABEL_STEP, STEP_CONTAINER
from finetune_trainer.contract.kept_log import PodEnd


@dataclass(frozen=True)
class Asked:
    """Which logs are meant; None: all of them."""

    step: str | None = None
    attempt: int | None = None

    def means(self, step: str, attempt: int) -> bool:
        return self.step in (None, step) and self.attempt in (None, attempt)


@dataclass(frozen=True)
class Piece:
    """One attempt's log, or one pod's of several."""

    step: str
    attempt: int
    pod: str | None  # None: it is gone
    uid: str = ""
    node: str = ""
    index: int = 0

    @property
    def title(self) -> str:
        title = f"── {self.step}, attempt {self.attempt}"
        if self.pod is None:
            return title
        return f"{title}, pod {self.pod}" + (f" on {self.node}" if self.node else "")


@dataclass(frozen=True)
class KeptPod:
    """What one pod of an attempt left in the artifact store."""

    text: str
    end: PodEnd | None


@dataclass(frozen=True)
class Kept:
    """What the artifact store has of an attempt."""

    where: str
    pods: tuple[KeptPod, ...] = ()
    unread: str = ""  # why it can't be read from here


def kept_lines(piece: Piece, kept: Kept) -> Iterator[str]:
    """What there is to tell of an attempt whose pods are gone."""
    if kept.unread:
        yield f"{piece.title}: its pod is gone; its log lies in {kept.where} ({kept.unread})"
    elif not kept.pods:
        yield f"{piece.title}: its pod is gone, and left no log in {kept.where}"
    for number, pod in enumerate(kept.pods):
        which = f", pod {number}" if len(kept.pods) > 1 else ""
        ended = f", ended with {pod.end.exit_code}" if pod.end else ""
        yield f"{piece.title}{which}{ended}, kept in {kept.where}"
        if pod.end is not None and pod.end.left_out:
            yield f"   (the {pod.end.left_out} bytes before this are not kept)"
        yield from pod.text.splitlines()


def pieces(status: FineTuneJobStatus, pods: Iterable[Object], asked: Asked) -> list[Piece]:
    """What is asked for, in the order of the steps: each attempt's pods, and the attempts that have none any more."""
    order = [step.name for step in status.steps]
    there = [piece for pod in pods if (piece := _piece(pod)) is not None and asked.means(piece.step, piece.attempt)]
    known = {(piece.step, piece.attempt) for piece in there}
    gone = [
        Piece(step.name, number, None)
        for step in status.steps
        for number in range(1, step.attempt + 1)
        if asked.means(step.name, number) and (step.name, number) not in known
    ]
    return sorted([*there, *gone], key=lambda p: (_place(order, p.step), p.attempt, p.index, p.pod or ""))


def _place(order: Sequence[str], step: str) -> int:
    return order.index(step) if step in order else len(order)


def _piece(pod: Object) -> Piece | None:
    """A pod of a step whose container has started; None for another, which has no log yet."""
    metadata, labels = pod["metadata"], pod["metadata"].get("labels") or {}
    told = (pod.get("status") or {}).get("containerStatuses") or []
    state = next((c.get("state") or {} for c in told if c.get("name") == STEP_CONTAINER), {})
    if LABEL_STEP not in labels or not ({"running", "terminated"} & state.keys()):
        return None
    return Piece(
        step=labels[LABEL_STEP],
        attempt=int(labels.get(LABEL_ATTEMPT, 1)),
        pod=metadata["name"],
        uid=metadata["uid"],
        node=(pod.get("spec") or {}).get("nodeName") or "",
        index=int((metadata.get("annotations") or {}).get(COMPLETION_INDEX, 0)),
    )


def readable(line: str) -> str:
    """A pod's line; a report of progress in words."""
    report = reported(line)
    return line if report is None else f"{report.step_name}: {describe(report)}"
