"""How an action of a decision is carried out. What the API server answers to it is known at once: its event is no news.

A create is made once, a deletion and a suspension are of one uid, and an apply rests on the version that the decision saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from finetune_operator.applied import Applied, replacing
from finetune_operator.cache import KINDS, OWNER_LABELS, Children, Own, key_of
from finetune_operator.cluster import Cluster
from finetune_operator.decision import Action, Apply, Create, Delete, NotePod, Observed, SuspendJob
from finetune_operator.errors import AlreadyExists, Conflict, Invalid, NameTaken, NotFound, Refused
from finetune_operator.meta import Key, Object
from finetune_operator.names import ANNOTATION_SUSPENDED
from finetune_operator.settings import Settings
from finetune_operator.tracing import SILENT, Traces
from finetune_operator.trimmed import SHAPES

log = structlog.get_logger("acting")

Progress = Callable[[Key], dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Means:
    """What every pass works with."""

    cluster: Cluster
    own: Own
    children: Children
    applied: Applied
    progress: Progress
    settings: Settings
    traces: Traces = SILENT


def stands(means: Means, body: Object, observed: Observed) -> bool:
    """Whether to apply it would change nothing."""
    found = _seen(means, key_of(body), observed)
    return found is not None and body["kind"] not in KINDS and means.applied.stands(body, found)


def _seen(means: Means, key: Key, observed: Observed) -> Object | None:
    """What the decision to write to an object rests on."""
    if key.kind in KINDS:
        return means.own.get(key)
    return next((o for o in observed.children.get(key.kind, ()) if o["metadata"]["name"] == key.name), None)


async def act(means: Means, namespace: str, action: Action, observed: Observed) -> bool:
    """Carry out one action; doing it a second time changes nothing. What the API server answers is known at once.

    Returns whether the next pass sees anything to do. It does not where somebody took our labels off what is created: a pass
    at once would only try again. Nor does it once something is gone that was over.
    """
    match action:
        case Create(body):
            with means.traces.creating(body):
                made = await _create(means.cluster, body)
            return _keep(means, made)
        case Apply(body, manager):
            answer = await _apply(means, body, manager, _seen(means, key_of(body), observed))
            means.applied.keep(body, answer)
            _keep(means, answer)
        case Delete(kind, name, uid, over):
            await means.cluster.delete(kind, namespace, name, uid)
            (means.own if kind in KINDS else means.children).hide(Key(kind, namespace, name), uid)
            return not over
        case SuspendJob(name, uid, suspend):
            job = _seen(means, Key("Job", namespace, name), observed)
            if job is None or job["metadata"]["uid"] != uid:
                raise Conflict(f"Job {name} is gone")
            notes = {ANNOTATION_SUSPENDED: "true" if suspend else None}
            patch = {"metadata": {"annotations": notes}, "spec": {"suspend": suspend}}
            _keep(means, await means.cluster.merge(job, patch))
        case NotePod():
            return await _note(means, namespace, action)
    return True


async def _note(means: Means, namespace: str, note: NotePod) -> bool:
    """Whether it was done, and is news."""
    try:
        answer = await means.cluster.annotate("Pod", namespace, note.name, note.uid, note.notes)
    except (NotFound, Conflict):
        return False
    except Refused as error:  # a webhook, or a role of an older release: its kubelet looks by itself a little later
        log.warning("pod not annotated", pod=note.name, namespace=namespace, error=str(error))
        return False
    return _keep(means, {"apiVersion": "v1", "kind": "Pod", **answer})


async def _apply(means: Means, body: Object, manager: str, seen: Object | None) -> Object:
    """Raises Conflict where the object was written since it was seen: what arrives late undoes nothing, such as `replicas: 0`
    that the network held up until pods were wanted again.
    """
    version = {} if seen is None else {"resourceVersion": seen["metadata"]["resourceVersion"]}
    try:
        return await means.cluster.apply({**body, "metadata": {**body["metadata"], **version}}, manager)
    except Invalid:  # perhaps only beside what others wrote: another port of our port's name
        found = means.children.get(key_of(body))
        if found is None or not _owners(body) <= _owners(found):
            raise
        return await means.cluster.merge(found, replacing(found, body))


def _keep(means: Means, body: Object) -> bool:
    """Whether it is news. A ModelServe that a job hands over to is left to its event, which wakes it: what is kept already
    is none.
    """
    labels = body["metadata"].get("labels") or {}
    is_child = body["kind"] not in KINDS and body["kind"] in SHAPES and any(label in labels for label in OWNER_LABELS)
    return is_child and means.children.keep(body)


async def _create(cluster: Cluster, body: Object) -> Object:
    try:
        return await cluster.create(body)
    except AlreadyExists:
        metadata = body["metadata"]
        found = await cluster.get(body["kind"], metadata["namespace"], metadata["name"])
        if found is None or not _owners(body) <= _owners(found):
            # The last owner of that name was deleted and its children are being collected, or the name is a stranger's.
            text = f"{body['kind']} {metadata['name']} exists and belongs to another owner; delete it, or rename the job"
            raise NameTaken(text) from None
        labels = metadata.get("labels") or {}
        if body["kind"] != "Job" or labels.items() <= (found["metadata"].get("labels") or {}).items():
            return found
        return await cluster.merge(found, {"metadata": {"labels": labels}})  # somebody took them off: no watch tells of it


def _owners(body: Object) -> set[str]:
    return {owner["uid"] for owner in body["metadata"].get("ownerReferences", ())}
