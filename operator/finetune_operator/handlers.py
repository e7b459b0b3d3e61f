"""Kopf, and nothing else of it: which events wake which key. No logic, no writes: `on.event` touches no object.

    FineTuneJob, ModelServe ─ wake themselves and each other
    Job, Pod, Deployment, Service with our label ─ wake their owner; a Pod that runs a step is read for progress

Kopf's handlers see neither every deletion nor every relist (a DELETED event is lost where a watch expired), so nothing
here is trusted for longer than one resync.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import kopf

from finetune_operator.meta import GROUP, VERSION, Key, Object
from finetune_operator.names import (
    FIELD_MANAGER,
    LABEL_JOB,
    LABEL_MANAGED_BY,
    LABEL_SERVE,
    LABEL_STEP,
    label_value,
)
from finetune_operator.progress_reader import ProgressReader
from finetune_operator.session import login

MANAGED = f"{LABEL_MANAGED_BY}={FIELD_MANAGER}"
OWNER_LABELS = {LABEL_JOB: "FineTuneJob", LABEL_SERVE: "ModelServe"}
KINDS = ("FineTuneJob", "ModelServe")
OURS = ((GROUP, VERSION, "finetunejobs"), (GROUP, VERSION, "modelserves"))
CHILDREN = (("batch", "v1", "jobs"), ("", "v1", "pods"), ("apps", "v1", "deployments"), ("", "v1", "services"))
LONGEST_BACKOFF_SECONDS = 30


class Seen:
    """What events told about our own objects: only what wakes others, counts for metrics and shows a dead watch."""

    def __init__(self) -> None:
        self.versions: dict[Key, int] = {}
        self._conditions: dict[Key, tuple[tuple[str, str], ...]] = {}
        self._jobs: dict[Key, str] = {}  # the job that a ModelServe takes its model from
        self._labelled: dict[Key, Key] = {}  # by what a label can hold of a long name

    def keep(self, key: Key, body: Object) -> None:
        """An object as it is now."""
        self.versions[key] = int(body["metadata"]["resourceVersion"])
        self._labelled[key._replace(name=label_value(key.name))] = key
        conditions = body.get("status", {}).get("conditions", ())
        self._conditions[key] = tuple((c["type"], c["status"]) for c in conditions)
        name = body.get("spec", {}).get("model", {}).get("jobRef", {}).get("name")
        if name:
            self._jobs[key] = name
        else:
            self._jobs.pop(key, None)

    def drop(self, key: Key) -> None:
        """An object that is gone."""
        self.versions.pop(key, None)
        self._conditions.pop(key, None)
        self._jobs.pop(key, None)
        self._labelled.pop(key._replace(name=label_value(key.name)), None)

    def serves_of(self, job: Key) -> list[Key]:
        """The ModelServes that take their model from this job."""
        return [k for k, name in self._jobs.items() if name == job.name and k.namespace == job.namespace]

    def owners(self, body: Object) -> list[Key]:
        """The objects of ours that this one belongs to: by its labels, and by its controller where that is ours."""
        metadata = body["metadata"]
        found = [(kind, metadata.get("labels", {}).get(label)) for label, kind in OWNER_LABELS.items()]
        found += [(o["kind"], o["name"]) for o in metadata.get("ownerReferences", ()) if o["kind"] in KINDS]
        if body["kind"] == "ModelServe":
            found.append(("FineTuneJob", body.get("spec", {}).get("model", {}).get("jobRef", {}).get("name")))
        keys = [Key(kind, metadata["namespace"], name) for kind, name in found if name]
        return list(dict.fromkeys(self._labelled.get(key, key) for key in keys))

    def counts(self) -> Counter[tuple[str, str, str]]:
        """Number of objects by kind, condition and status."""
        return Counter((key.kind, *condition) for key, found in self._conditions.items() for condition in found)


class Events:
    """What the events do: they wake keys and tell the progress reader which pods run."""

    def __init__(self, wake: Callable[[Key], None], seen: Seen, progress: ProgressReader) -> None:
        self._wake = wake
        self._seen = seen
        self._progress = progress

    def ours(self, kind: str | None, body: Object) -> None:
        """A FineTuneJob or a ModelServe came, changed or went."""
        key = Key(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"])
        related = self._seen.serves_of(key) if key.kind == "FineTuneJob" else self._seen.owners(body)
        if kind == "DELETED":
            self._seen.drop(key)
        else:
            self._seen.keep(key, body)
        for one in (key, *related):
            self._wake(one)

    def child(self, kind: str | None, body: Object) -> None:
        """Something that belongs to one of ours came, changed or went."""
        metadata = body["metadata"]
        for owner in self._seen.owners(body):
            self._wake(owner)
            if body["kind"] == "Pod" and LABEL_STEP in metadata.get("labels", {}):
                if kind != "DELETED" and body.get("status", {}).get("phase") == "Running":
                    self._progress.watch(metadata["namespace"], metadata["name"], owner)
                else:
                    self._progress.forget(metadata["namespace"], metadata["name"])


def registry(events: Events) -> kopf.OperatorRegistry:
    """Kopf's handlers. Ours alone: its default registry would import the synchronous client to log in."""
    handlers = kopf.OperatorRegistry()

    async def ours(type: str | None, event: kopf.RawEvent, **_: Any) -> None:
        events.ours(type, dict(event["object"]))

    async def child(type: str | None, event: kopf.RawEvent, **_: Any) -> None:
        events.child(type, dict(event["object"]))

    for resource in OURS:
        kopf.on.event(*resource, registry=handlers)(ours)
    for resource in CHILDREN:
        kopf.on.event(*resource, registry=handlers)(child)
    kopf.on.login(registry=handlers)(login)
    return handlers


class Backoffs(Iterable[float]):
    """Delays without an end: Kopf's own list ends after 54 s of failures, and the operator with it."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1, 1, 2, 3, 5, 8, 13, 21), itertools.repeat(LONGEST_BACKOFF_SECONDS))


def kopf_settings() -> kopf.OperatorSettings:
    """Kopf as a watcher only: no scanning for new kinds, no annotations, no events of its own, no early surrender."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.networking.error_backoffs = Backoffs()
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 10
    settings.watching.connect_timeout = 10
    settings.watching.server_timeout = 600
    settings.queueing.exit_timeout = 0.5
    settings.process.ultimate_exiting_timeout = 10
    for resource in CHILDREN:
        settings.watching.label_selectors[resource] = MANAGED
    return settings
