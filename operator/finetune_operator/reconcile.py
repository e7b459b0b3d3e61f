"""One pass over one object: read it and its children, decide, apply, write status once and only if it changed, tell.

    get ─► reads ─► observe ─► decide ─► act … ─► write status ─► events ─► requeue
           └────── policy ──────┘└ policy ┘

It knows neither kind: a policy decides (decision.py). Nothing is remembered between passes, and what a pass causes is
seen in the next one.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from pydantic import BaseModel, ValidationError

from finetune_operator import problems
from finetune_operator.bounds import bounded, status_schema
from finetune_operator.cluster import Cluster
from finetune_operator.decision import (
    Action,
    Apply,
    Create,
    Decision,
    Delete,
    Event,
    Observed,
    Policy,
    Reads,
    SuspendJob,
)
from finetune_operator.decoding import UNREADABLE
from finetune_operator.errors import AlreadyExists, ClusterError, Conflict, InvalidSpec, NotLeader, Refused
from finetune_operator.meta import Key, Object
from finetune_operator.names import ANNOTATION_HOLD
from finetune_operator.sentences import sentences
from finetune_operator.settings import Settings

log = structlog.get_logger("reconcile")


@dataclass(frozen=True)
class Kind:
    """What makes a kind a kind: its types and its policy."""

    model: type[BaseModel]
    policy: Policy


@dataclass(frozen=True)
class Outcome:
    """How a pass ended, for the queue, the log and the metrics."""

    result: str  # gone, held, stalled, unchanged, changed
    generation: int = 0
    writes: int = 0
    requeue_after: float | None = None  # seconds


Progress = Callable[[Key], dict[str, dict[str, Any]]]


async def reconcile(key: Key, kind: Kind, cluster: Cluster, progress: Progress, settings: Settings, now: datetime) -> Outcome:
    """One pass. Raises ClusterError where it must be repeated; what a Refused error says is in the status by then."""
    body = await cluster.get(key.kind, key.namespace, key.name)
    if body is None or body["metadata"].get("deletionTimestamp"):
        return Outcome("gone")  # what it owns is collected by its owner references
    generation = body["metadata"].get("generation", 0)
    if body["metadata"].get("annotations", {}).get(ANNOTATION_HOLD) == "true":
        return Outcome("held", generation, await _report(cluster, kind, body, problems.held(body, now), ()))
    policy = kind.policy
    try:
        known = without_unknown(kind.model, {**body, "status": bounded(body.get("status", {}), status_schema(kind.model))})
    except InvalidSpec as error:
        status = problems.stalled(body, str(error), now)
        writes = await _report(cluster, kind, body, status, (Event(problems.INVALID_SPEC, str(error), warning=True),))
        return Outcome("stalled", generation, writes)
    decision = Decision(status=known["status"])
    try:
        observed = await observe(cluster, key, policy.reads(known), progress(key))
        decision = policy.decide(known, observed, settings, now)
        for action in decision.actions:
            await act(cluster, key.namespace, action)
    except Refused as error:
        status = problems.refused(body, decision.status, str(error), now)
        await _report(cluster, kind, body, status, (Event(problems.REFUSED, str(error), warning=True),))
        raise
    except (ClusterError, NotLeader):
        raise
    except Exception as error:  # the fault is ours, but the object is its only victim: who looks at it must see it
        text = f"the operator failed at this object ({type(error).__name__}) and tries again; its log tells more"
        status = problems.stalled(body, text, now, problems.FAULT)
        await _report(cluster, kind, body, status, (Event(problems.FAULT, text, warning=True),))
        raise
    writes = len(decision.actions) + await _report(cluster, kind, body, decision.status, decision.events)
    return Outcome("changed" if writes else "unchanged", generation, writes, decision.requeue_after)


async def observe(cluster: Cluster, key: Key, reads: Reads, progress: dict[str, dict[str, Any]]) -> Observed:
    """All that the policy asked for, read side by side."""
    lists = [cluster.list(kind, key.namespace, reads.labels) for kind in reads.kinds]
    gets = [cluster.get(ref.kind, key.namespace, ref.name) for ref in reads.named]
    children, named = await asyncio.gather(asyncio.gather(*lists), asyncio.gather(*gets))
    return Observed(dict(zip(reads.kinds, children, strict=True)), dict(zip(reads.named, named, strict=True)), progress)


async def act(cluster: Cluster, namespace: str, action: Action) -> None:
    """Carry out one action; doing it a second time changes nothing."""
    match action:
        case Create(body):
            await _create(cluster, body)
        case Apply(body):
            await cluster.apply(body)
        case Delete(kind, name, uid):
            await cluster.delete(kind, namespace, name, uid)
        case SuspendJob(name, uid, suspend):
            await cluster.suspend(namespace, name, uid, suspend)


async def _create(cluster: Cluster, body: Object) -> None:
    try:
        await cluster.create(body)
    except AlreadyExists:
        metadata = body["metadata"]
        found = await cluster.get(body["kind"], metadata["namespace"], metadata["name"])
        if found is None or not _owners(body) <= _owners(found):
            # The last owner of that name was deleted and its children are being collected, or the name is a stranger's.
            text = f"{body['kind']} {metadata['name']} exists and belongs to another owner; delete it, or rename the job"
            raise Conflict(text) from None


def _owners(body: Object) -> set[str]:
    return {owner["uid"] for owner in body["metadata"].get("ownerReferences", ())}


async def _report(cluster: Cluster, kind: Kind, body: Object, status: dict[str, Any], events: tuple[Event, ...]) -> int:
    """Write the status if it differs, then tell what happened. Returns the number of writes to the object."""
    told = pruned(bounded(status, status_schema(kind.model)))
    if told == pruned(body.get("status", {})):
        return 0
    await cluster.replace_status(body, told)
    for event in events:
        try:
            await cluster.post_event(body, event)
        except ClusterError as error:  # the status says the same: an event is a courtesy, not worth another pass
            log.warning("event lost", reason=event.reason, error=str(error))
    return 1


def pruned(value: Any) -> Any:
    """The value as the API server keeps it: without nulls, and without lists and objects that hold nothing."""
    if isinstance(value, dict):
        inner = {k: pruned(v) for k, v in value.items()}
        return {k: v for k, v in inner.items() if v is not None and v != {} and v != []}
    return [pruned(v) for v in value] if isinstance(value, list | tuple) else value


def without_unknown(model: type[BaseModel], body: Object) -> Object:
    """The object without the fields of spec that only a newer operator knows.

    Raises InvalidSpec, naming the field, where what is left can't be read.
    """
    if (problem := body.get(UNREADABLE)) is not None:
        raise InvalidSpec(problem)
    try:
        model.model_validate(body)
    except ValidationError as error:
        unknown = [e["loc"] for e in error.errors() if e["type"] == "extra_forbidden"]
        if len(unknown) < error.error_count():
            raise InvalidSpec("; ".join(sentences(error, ""))) from None
        body = copy.deepcopy(body)
        for *parents, last in unknown:
            node = body
            for part in parents:
                node = node[part]  # type: ignore[index]
            del node[last]  # type: ignore[arg-type]
    return body
