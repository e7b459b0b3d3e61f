"""One pass over one object: what is known of it and its children, decide, apply, write status only if it changed, tell.

    cache ─► reads ─► observe ─► decide ─► act … ─► write status ─► events ─► requeue
             └────── policy ──────┘└ policy ┘ └ the other way round where the status names what is about to be started

It knows neither kind: a policy decides (decision.py). A pass over an unchanged object makes no request. What it writes
rests on a version that the API server compares, or on the object as it was read again just before.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from finetune_operator import problems
from finetune_operator.acting import Means, act, stands
from finetune_operator.bounds import bounded, status_schema
from finetune_operator.cache import KINDS, has_turn
from finetune_operator.decision import (
    Action,
    Apply,
    Decision,
    Delete,
    Event,
    Named,
    Observed,
    Policy,
    Reads,
    Ref,
    Unread,
)
from finetune_operator.decoding import UNREADABLE
from finetune_operator.errors import ClusterError, Conflict, InvalidSpec, NameTaken, NotLeader, Refused
from finetune_operator.meta import Key, Object
from finetune_operator.sentences import sentences
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reasons.steps import StepReason

log = structlog.get_logger("reconcile")

UNTRIMMED = ("Service",)  # children of which a pass may read all by name

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Kind:
    """What makes a kind a kind: its types and its policy."""

    model: type[BaseModel]
    policy: Policy[Any]


@dataclass(frozen=True)
class Outcome:
    """How a pass ended, for the queue, the log and the metrics."""

    result: str  # gone, managed elsewhere, held, stalled, unchanged, changed
    generation: int = 0
    writes: int = 0
    requeue_after: float | None = None  # seconds
    look_after: float | None = None  # seconds; such a pass may wait for a time at which there is less to do


async def reconcile(key: Key, kind: Kind, means: Means, now: datetime) -> Outcome:
    """One pass. Raises ClusterError where it must be repeated; what a Refused error says is in the status by then."""
    body = means.own.get(key)
    if body is None or body["metadata"].get("deletionTimestamp"):
        means.applied.forget(key)
        return Outcome("gone")  # what it owns is collected by its owner references
    return await _Pass(key, kind, means, now, body).run()


@dataclass
class _Pass:
    key: Key
    kind: Kind
    means: Means
    now: datetime
    body: Object  # as a watch told of it, or as it was read or written since
    writes: int = 0
    acted: bool = False
    told: bool = False  # whether the status was written

    async def run(self) -> Outcome:
        generation = self.body["metadata"].get("generation", 0)
        if problems.is_managed_elsewhere(self.body):
            await self._tell(problems.managed_elsewhere(self.body, self.now))
            return Outcome("managed elsewhere", generation, self.writes)
        if problems.is_held(self.body):
            await self._tell(problems.held(self.body, self.now))
            return Outcome("held", generation, self.writes)
        try:
            decision = await self._decide_and_act()
        except InvalidSpec as error:
            event = Event(StepReason.InvalidSpec, str(error), warning=True)
            await self._tell(problems.stalled(self.body, str(error), self.now), event)
            return Outcome("stalled", generation, self.writes)
        result = "changed" if self.writes else "unchanged"
        look_after = 0.0 if self.acted else decision.tidy_after  # what it caused is seen by the next pass
        return Outcome(result, generation, self.writes, decision.requeue_after, look_after)

    async def _decide_and_act(self) -> Decision:
        decision = Decision(status=self.body.get("status", {}))
        try:
            decision, observed = await self._decide()
            if not decision.intent and any(map(_needs_the_newest, self._acts(decision, observed))) and await self._is_old():
                decision, observed = await self._decide()
            if has_turn(decision.status):
                self.means.own.take_turn(self.key)
            if decision.intent:
                await self._tell(decision.status)
            for action in self._acts(decision, observed):
                self.writes += 1
                self.acted |= await act(self.means, self.key.namespace, action, observed)
        except (Refused, NameTaken) as error:
            event = Event(OperatorReason.Refused, str(error), warning=True)
            await self._tell(problems.refused(self.body, decision.status, str(error), self.now), event)
            raise
        except (ClusterError, NotLeader, InvalidSpec):
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

    async def _decide(self) -> tuple[Decision, Observed]:
        """What the policy makes of what is known; what it looks at besides is read."""
        policy, means = self.kind.policy, self.means
        status = self.body.get("status", {})
        if not means.applied.is_ours(self.body):
            status = bounded(status, status_schema(self.kind.model))
        own = without_unknown(self.kind.model, {**self.body, "status": status})
        reads = policy.reads(own)
        observed, read = observe(means, self.key, reads), dict[Ref, Object | None]()
        while True:  # each time around, more is read
            try:
                return policy.decide(own, observed, means.settings, self.now), observed
            except Unread as unread:
                read |= await self._read(reads, unread.ref)
                observed = replace(observed, named=_named(reads, watched(means, self.key, reads) | read))

    async def _read(self, reads: Reads, asked: Ref) -> dict[Ref, Object | None]:
        """All that the spec names and no watch knows; or the one object of which the policy has just learnt."""
        means, known = self.means, watched(self.means, self.key, reads)
        unread = [ref for ref in reads.named if known.get(ref) is None] if asked in reads.named else [asked]
        found = await asyncio.gather(*(means.cluster.read(self.key.namespace, ref) for ref in unread))
        told = watched(means, self.key, reads)
        return {ref: answer or told.get(ref) for ref, answer in zip(unread, found, strict=True)}

    def _acts(self, decision: Decision, observed: Observed) -> list[Action]:
        """The actions without those that would change nothing."""
        return [a for a in decision.actions if not (isinstance(a, Apply) and stands(self.means, a.body, observed))]

    async def _is_old(self) -> bool:
        """Read the object itself before anything is done that no version guards. Whether it was another by now."""
        live = await self.means.cluster.get(self.key.kind, self.key.namespace, self.key.name)
        if live is None or live["metadata"].get("deletionTimestamp"):
            raise Conflict(f"{self.key} is being deleted")
        before, self.body = self.body, live
        self.means.own.keep(live)
        return bool(live["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"])

    async def _tell(self, status: dict[str, Any], *events: Event) -> None:
        """Write the status if it differs, then tell what happened. Fields that only a later release knows stay."""
        before, schema = pruned(self.body.get("status", {})), status_schema(self.kind.model)
        later = {name: value for name, value in before.items() if name not in schema["properties"]}
        if pruned(status) | later == before or (told := pruned(bounded(status, schema)) | later) == before:
            return
        self.body = await self.means.cluster.replace_status(self.body, told)
        self.means.own.keep(self.body)
        self.means.applied.keep_status(self.body)
        self.writes += 1
        self.told = True
        await self._post(events)

    async def _post(self, events: Iterable[Event]) -> None:
        for event in events:
            try:
                await self.means.cluster.post_event(self.body, event)
            except ClusterError as error:  # the status says the same: an event is a courtesy, not worth another pass
                log.warning("event lost", reason=event.reason, error=str(error))


def _needs_the_newest(action: Action) -> bool:
    """Whether an edit of which no event has told yet could make the action a wrong one."""
    return not (isinstance(action, Delete) and action.over)


def observe(means: Means, key: Key, reads: Reads) -> Observed:
    """What is known without a request; the rest of what the spec names is read when the policy looks at it."""
    known = watched(means, key, reads)
    children = {kind: means.children.list(kind, key.namespace, reads.labels) for kind in reads.kinds}
    named = _named(reads, known)
    unserved = frozenset(means.children.unserved)
    return Observed(children, named, means.progress(key), means.own.paced(key), unserved, means.own.named_below)


def _named(reads: Reads, known: Mapping[Ref, Object | None]) -> Named:
    return Named(known, [ref for ref in reads.named if ref not in known], reads.learnt)


def watched(means: Means, key: Key, reads: Reads) -> dict[Ref, Object | None]:
    """What watches tell of the objects that a pass reads by name.

    That one of them is gone is believed when its watch and a read agree: an answer may err for once, and what follows
    from an absence, as the loss of all that a Service remembers, is not undone by the next answer.
    """
    known: dict[Ref, Object | None] = {}
    for ref in reads.named:
        place = Key(ref.kind, key.namespace, ref.name)
        if ref.kind in KINDS:
            known[ref] = means.own.get(place)
        elif (child := means.children.get(place)) is not None and ref.kind in UNTRIMMED:
            known[ref] = child
    return known


def pruned(value: Any) -> Any:
    """The value as the API server keeps it: without nulls, and without lists and objects that hold nothing."""
    if isinstance(value, dict):
        inner = {k: pruned(v) for k, v in value.items()}
        return {k: v for k, v in inner.items() if v is not None and v != {} and v != []}
    return [pruned(v) for v in value] if isinstance(value, (list, tuple)) else value  # a union would be made anew for each


def without_unknown(model: type[Model], body: Object) -> Model:
    """The object as its type has it, without the fields of spec that only a newer operator knows.

    Raises InvalidSpec, naming the field, where what is left can't be read.
    """
    if (problem := body.get(UNREADABLE)) is not None:
        raise InvalidSpec(problem)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        unknown = [e["loc"] for e in error.errors() if e["type"] == "extra_forbidden"]
        if len(unknown) < error.error_count():
            raise InvalidSpec("; ".join(sentences(error, model, ""))) from None
        body = copy.deepcopy(body)
        for *parents, last in unknown:
            node = body
            for part in parents:
                node = node[part]  # type: ignore[index]
            del node[last]  # type: ignore[arg-type]
        return model.model_validate(body)
