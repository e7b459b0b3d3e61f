"""One pass over one object: read it and its children, decide, apply, write status once and only if it changed, tell.

    get ─► reads ─► observe ─► decide ─► act … ─► write status ─► events ─► requeue
           └────── policy ──────┘└ policy ┘ └ the other way round where the status names what is about to be started

It knows neither kind: a policy decides (decision.py). Nothing is remembered between passes, and what a pass causes is
seen in the next one.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from pydantic import BaseModel, ValidationError

from finetune_operator import problems
from finetune_operator.applied import Applied
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
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reasons.steps import StepReason

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


@dataclass(frozen=True)
class Means:
    """What every pass works with."""

    cluster: Cluster
    progress: Progress
    applied: Applied
    settings: Settings


async def reconcile(key: Key, kind: Kind, means: Means, now: datetime) -> Outcome:
    """One pass. Raises ClusterError where it must be repeated; what a Refused error says is in the status by then."""
    body = await means.cluster.get(key.kind, key.namespace, key.name)
    if body is None or body["metadata"].get("deletionTimestamp"):
        return Outcome("gone")  # what it owns is collected by its owner references
    return await _Pass(key, kind, means, now, body).run()


@dataclass
class _Pass:
    key: Key
    kind: Kind
    means: Means
    now: datetime
    body: Object  # as it was read, or as the last write of its status left it
    writes: int = 0
    told: bool = False  # whether the status was written

    async def run(self) -> Outcome:
        generation = self.body["metadata"].get("generation", 0)
        if self.body["metadata"].get("annotations", {}).get(ANNOTATION_HOLD) == "true":
            await self._tell(problems.held(self.body, self.now))
            return Outcome("held", generation, self.writes)
        read = bounded(self.body.get("status", {}), status_schema(self.kind.model))
        try:
            known = without_unknown(self.kind.model, {**self.body, "status": read})
        except InvalidSpec as error:
            event = Event(StepReason.InvalidSpec, str(error), warning=True)
            await self._tell(problems.stalled(self.body, str(error), self.now), event)
            return Outcome("stalled", generation, self.writes)
        decision = await self._decide_and_act(known)
        return Outcome("changed" if self.writes else "unchanged", generation, self.writes, decision.requeue_after)

    async def _decide_and_act(self, known: Object) -> Decision:
        decision = Decision(status=known["status"])
        try:
            observed = await observe(self.means, self.key, self.kind.policy.reads(known))
            decision = self.kind.policy.decide(known, observed, self.means.settings, self.now)
            if decision.intent:
                await self._tell(decision.status)
            for action in decision.actions:
                self.writes += await act(self.means, observed, self.key.namespace, action)
        except Refused as error:
            event = Event(OperatorReason.Refused, str(error), warning=True)
            await self._tell(problems.refused(self.body, decision.status, str(error), self.now), event)
            raise
        except (ClusterError, NotLeader):
            raise
        except Exception as error:  # the fault is ours, but the object is its only victim: who looks at it must see it
            text = f"the operator failed at this object ({type(error).__name__}) and tries again; its log tells more"
            event = Event(OperatorReason.OperatorFault, text, warning=True)
            await self._tell(problems.stalled(self.body, text, self.now, OperatorReason.OperatorFault), event)
            raise
        await self._tell(decision.status)
        if self.told:
            await self._post(decision.events)
        return decision

    async def _tell(self, status: dict[str, Any], *events: Event) -> None:
        """Write the status if it differs, then tell what happened."""
        told = pruned(bounded(status, status_schema(self.kind.model)))
        if told == pruned(self.body.get("status", {})):
            return
        self.body = await self.means.cluster.replace_status(self.body, told)
        self.writes += 1
        self.told = True
        await self._post(events)

    async def _post(self, events: Iterable[Event]) -> None:
        for event in events:
            try:
                await self.means.cluster.post_event(self.body, event)
            except ClusterError as error:  # the status says the same: an event is a courtesy, not worth another pass
                log.warning("event lost", reason=event.reason, error=str(error))


async def observe(means: Means, key: Key, reads: Reads) -> Observed:
    """All that the policy asked for, read side by side."""
    lists = [means.cluster.list(kind, key.namespace, reads.labels) for kind in reads.kinds]
    gets = [means.cluster.get(ref.kind, key.namespace, ref.name) for ref in reads.named]
    children, named = await asyncio.gather(asyncio.gather(*lists), asyncio.gather(*gets))
    return Observed(
        dict(zip(reads.kinds, children, strict=True)), dict(zip(reads.named, named, strict=True)), means.progress(key)
    )


async def act(means: Means, observed: Observed, namespace: str, action: Action) -> int:
    """Carry out one action; doing it a second time changes nothing. Returns the number of writes."""
    match action:
        case Create(body):
            await _create(means.cluster, body)
        case Apply(body):
            name = body["metadata"]["name"]
            found = next((o for o in observed.children.get(body["kind"], ()) if o["metadata"]["name"] == name), None)
            if found is not None and means.applied.stands(body, found):
                return 0
            means.applied.keep(body, await means.cluster.apply(body))
        case Delete(kind, name, uid):
            await means.cluster.delete(kind, namespace, name, uid)
        case SuspendJob(name, uid, suspend):
            await means.cluster.suspend(namespace, name, uid, suspend)
    return 1


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
