"""Kopf, and nothing else of it: which events wake which key. No logic, no writes: `on.event` touches no object.

    FineTuneJob, ModelServe (Kopf) ─ wake themselves and each other
    what has our label (watches.py) ─ wakes its owner; a Pod that runs a step is read for progress

Kopf's handlers see neither every deletion nor every relist (a DELETED event is lost where a watch expired), so nothing
that it told is trusted for longer than one resync.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import kopf

from finetune_operator.cache import Children, Own, is_new, key_of
from finetune_operator.cluster import PAGE
from finetune_operator.meta import GROUP, VERSION, Key, Object
from finetune_operator.names import LABEL_STEP
from finetune_operator.progress_reader import ProgressReader
from finetune_operator.session import login
from finetune_operator.workqueue import Rank

OURS = ((GROUP, VERSION, "finetunejobs"), (GROUP, VERSION, "modelserves"))
LONGEST_BACKOFF_SECONDS = 30
IDLE_SECONDS = 0.1  # for which Kopf keeps an object whole, and a task for it, after an event that came and was handled
Wake = Callable[[Key, Rank], None]


class Events:
    """What the events do: they are kept, wake keys, and tell the progress reader which pods run.

    `soon` wakes a moment later: the events of a pod that starts, or ends with its Job, come in bursts.
    """

    def __init__(self, wake: Wake, soon: Wake, own: Own, children: Children, progress: ProgressReader) -> None:
        self._wake = wake
        self._soon = soon
        self._own = own
        self._children = children
        self._progress = progress

    def ours(self, kind: str | None, body: Object) -> None:
        """A FineTuneJob or a ModelServe came, changed or went. Our own writes are known already, and no news."""
        key = key_of(body)
        if kind == "DELETED":
            self._own.drop(key, body["metadata"]["uid"], int(body["metadata"]["resourceVersion"]))
        elif not self._own.keep(body):
            return
        self._wake(key, Rank.NEW if is_new(body) else Rank.WORK)
        for one in self._own.related(key, body):
            self._wake(one, Rank.WORK)

    def child(self, kind: str, body: Object) -> None:
        """Something that belongs to one of ours came, changed or went."""
        metadata = body["metadata"]
        rank = Rank.PROGRESS if kind != "DELETED" and self._children.is_of_step_at_work(body) else Rank.WORK
        for owner in self._own.owners(body):
            self._soon(owner, rank)
            if body["kind"] == "Pod" and LABEL_STEP in (metadata.get("labels") or {}):
                if kind != "DELETED" and (body.get("status") or {}).get("phase") == "Running":
                    self._progress.watch(metadata["namespace"], metadata["name"], owner)
                else:
                    self._progress.forget(metadata["namespace"], metadata["name"])


def registry(events: Events) -> kopf.OperatorRegistry:
    """Kopf's handlers. Ours alone: its default registry would import the synchronous client to log in."""
    handlers = kopf.OperatorRegistry()

    async def ours(type: str | None, event: kopf.RawEvent, **_: Any) -> None:
        events.ours(type, dict(event["object"]))

    for resource in OURS:
        kopf.on.event(*resource, registry=handlers)(ours)
    kopf.on.login(registry=handlers)(login)
    return handlers


class Backoffs(Iterable[float]):
    """Delays without an end: Kopf's own list ends after 54 s of failures, and the operator with it."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1, 1, 2, 3, 5, 8, 13, 21), itertools.repeat(LONGEST_BACKOFF_SECONDS))


class NoDiffs(kopf.DiffBaseStorage):
    """Kopf copies each object to compare it with what it handled last: with handlers of events alone, for nothing."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """Nothing is kept, so that nothing is written to the object."""


def kopf_settings() -> kopf.OperatorSettings:
    """Kopf as a watcher only: no scanning for new kinds, no annotations, no events of its own, no early surrender."""
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = NoDiffs()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.networking.error_backoffs = Backoffs()
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 10
    settings.watching.connect_timeout = 10
    settings.watching.server_timeout = 600
    settings.queueing.exit_timeout = 0.5
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.process.ultimate_exiting_timeout = 10
    settings.watching.chunk_size = PAGE
    return settings
