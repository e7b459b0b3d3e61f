"""The adapters of a ModelServe, each by itself: what answers to its name, what is tried, and what came of that. Pure.

asked for ─► Gating: pods load it beside what serves, and its gate asks it ── passed ──► Promoting ── in each pod ──► Live
   │            │ wrong, or a pod can't load it             │ unknown: it is asked again   its name leads to it
   └► Waiting   └─► Refused: the one before of this name goes on, and so do model and other adapters       │
                                                       asked again where pods became ready since, and were not told: Degraded
In another revision each is tried again, while it goes on there as far as it can be loaded. What has passed is told by the
ConfigMap that pods read (its annotation), so that a status which is lost loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter, ValidationError

from finetune_operator.api.adapters import Adapter, AdapterState, AdapterStatus, LiveAdapter
from finetune_operator.api.modelserve import ModelServe, Revision
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.decision import Observed
from finetune_operator.meta import Object, stamp
from finetune_operator.modelserve.adapter_pod import config_map_name, has_room
from finetune_operator.modelserve.adapter_source import Source, source
from finetune_operator.modelserve.deployed import Deployed
from finetune_operator.modelserve.gating import failure_of, pause_left
from finetune_operator.modelserve.observed import Gate, Verdict, World
from finetune_operator.names import ANNOTATION_ADAPTERS, ANNOTATION_RETRY, LABEL_ADAPTER, object_name, short_hash
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.served_adapters import WANTED, WantedAdapter, WantedAdapters

Record = dict[str, LiveAdapter]  # by the adapter's name
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


@dataclass(frozen=True)
class Step:
    """What becomes of one adapter: `ask` starts its gate."""

    adapter: Adapter
    status: AdapterStatus
    evaluation: str | None = None
    ask: bool = False
    pods: int = 1  # that are ready, which are to be asked
    requeue_after: float | None = None

    @property
    def wanted(self) -> list[WantedAdapter]:
        """What pods are to have loaded for it."""
        told, live = self.status, self.status.live
        tried = []
        if told.state is AdapterState.GATING and told.digest and told.uri and told.trial:
            tried = [
                _wanted(told.name, told.digest, told.uri, told.trial, serves=live is not None and live.digest == told.digest)
            ]
        if live is None or any(adapter.serves for adapter in tried):
            return tried
        return [_wanted(told.name, live.digest, live.uri, live.trial, serves=True), *tried]


@dataclass(frozen=True)
class Around:
    """What all adapters of a ModelServe depend on. `live` is the revision that serves, once it has room for adapters."""

    serve: ModelServe
    model: ResolvedModel | None
    live: Revision | None
    record: Record
    gates: Mapping[str, Gate]
    observed: Observed
    now: datetime
    deployed: Deployed | None = None  # of the revision that serves

    @property
    def since(self) -> str:
        """When the last of its ready pods became so."""
        pods = self.deployed.pods if self.deployed else ()
        return max((pod.ready_changed_at for pod in pods if pod.ready), default="")

    @property
    def ready(self) -> int:
        """How many of its pods are ready, as far as is known."""
        return max(1, self.deployed.ready) if self.deployed else 1

    @property
    def is_down(self) -> bool:
        """Whether it is to have pods, and none is ready."""
        return self.deployed is not None and self.deployed.replicas > 0 and self.deployed.ready == 0


def next_steps(
    serve: ModelServe, model: ResolvedModel | None, live: Revision | None, world: World, observed: Observed, now: datetime
) -> tuple[Step, ...]:
    """The next step of each. The same world gives the same ones."""
    manifest = None if live is None else world.records.get(live.name)
    roomy = live if manifest is not None and has_room(manifest["spec"]["template"]) else None
    deployed = None if live is None else world.deployed.get(live.name)
    around = Around(serve, model, roomy, _recorded(serve, observed), world.gates, observed, now, deployed)
    return tuple(_step(around, adapter) for adapter in serve.spec.adapters)


def wanted_by(steps: tuple[Step, ...]) -> WantedAdapters:
    """What pods are to have loaded."""
    wanted = tuple(adapter for step in steps for adapter in step.wanted)
    return WantedAdapters(version=short_hash(*(adapter.model_dump_json() for adapter in wanted)), adapters=wanted)


def config_map(steps: tuple[Step, ...], wanted: WantedAdapters, metadata: Object) -> Object:
    """What pods read."""
    record = {step.adapter.name: step.status.live for step in steps if step.status.live is not None}
    notes = {ANNOTATION_ADAPTERS: _RECORD.dump_json(record, by_alias=True).decode()}
    data = wanted.model_dump(mode="json", by_alias=True)
    body: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**metadata, "annotations": notes}}
    return body | {"data": {WANTED: json.dumps(data, indent=1)}}


def gate_job(serve: ModelServe, told: AdapterStatus) -> str:
    """Name of the Job that tries this adapter, for the first time or once more."""
    asks = [] if told.asks_since is None else ["told", told.asks_since]
    of = (told.name, told.digest or "", told.trial or "", *asks)
    mark = short_hash(*of, length=10)
    return object_name(serve.metadata.name, "adapter", mark, *([str(told.gates_lost)] if told.gates_lost else []))


def is_asking(told: AdapterStatus) -> bool:
    """Whether a Job is to ask pods for it."""
    return told.state is AdapterState.GATING or told.asks_since is not None


def is_gate(child: Object) -> bool:
    """Whether this child is the gate's Job of an adapter."""
    return child["kind"] == "Job" and LABEL_ADAPTER in (child["metadata"].get("labels") or {})


def _recorded(serve: ModelServe, observed: Observed) -> Record:
    """What has passed: as the ConfigMap tells, or the status where that is away."""
    name, uid = config_map_name(serve), serve.metadata.uid
    for found in observed.children.get("ConfigMap", ()):
        owners = {owner["uid"] for owner in found["metadata"].get("ownerReferences") or []}
        if found["metadata"]["name"] == name and uid in owners:
            try:
                return _RECORD.validate_json((found["metadata"].get("annotations") or {}).get(ANNOTATION_ADAPTERS, ""))
            except ValidationError:
                break
    return {told.name: told.live for told in serve.status.adapters if told.live is not None}


def _step(around: Around, adapter: Adapter) -> Step:
    found = source(around.serve, adapter, around.model, around.observed)
    live = around.record.get(adapter.name)
    before = next((told for told in around.serve.status.adapters if told.name == adapter.name), None)
    asked = AdapterStatus(
        name=adapter.name,
        state=AdapterState.WAITING,
        uri=found.uri,
        digest=found.digest,
        live=live,
        trial=_trial(around, adapter, found),
        reason=found.reason,
        message=found.message,
    )
    if found.digest is None:
        state = AdapterState.WAITING if found.waits else AdapterState.REFUSED
        return Step(adapter, asked.model_copy(update={"state": state}))
    if before is not None and (before.digest, before.trial) == (asked.digest, asked.trial):
        asked = asked.model_copy(update={"gates_lost": before.gates_lost, "test_rows": before.test_rows})
        if before.state is AdapterState.REFUSED:
            return Step(adapter, before.model_copy(update={"live": live, "uri": asked.uri}))
    if live is not None and live.digest == asked.digest and (around.live is None or live.revision == around.live.name):
        served = asked.model_copy(update={"live": live.model_copy(update={"uri": asked.uri})})
        return _promoted(around, Step(adapter, served), before)
    if around.live is None:
        text = "no revision serves yet that has room for adapters"
        return Step(adapter, asked.model_copy(update={"reason": OperatorReason.NothingLive, "message": text}))
    return _gated(around, around.live, Step(adapter, asked.model_copy(update={"state": AdapterState.GATING}), found.evaluation))


def _gated(around: Around, revision: Revision, step: Step) -> Step:
    """What its gate says of it."""
    asked = step.status
    gate = around.gates.get(gate_job(around.serve, asked))
    if gate is None:
        return Step(step.adapter, _gating(asked), step.evaluation, ask=True)
    if gate.verdict is Verdict.RUNNING:
        return Step(step.adapter, _gating(asked), step.evaluation)
    asked = asked.model_copy(update=gate.numbers)
    if gate.verdict is Verdict.PASSED:
        told = asked.model_dump(include={"digest", "uri", "trial"})
        live = LiveAdapter(**told, revision=revision.name, since=stamp(around.now))
        return _promoted(around, Step(step.adapter, asked.model_copy(update={"live": live, "gates_lost": None})))
    reason, message = failure_of(gate)
    if gate.verdict is Verdict.FAILED:
        # What answered in another revision does not go on in this one.
        live_before = asked.live if asked.live is not None and asked.live.digest != asked.digest else None
        told = {"state": AdapterState.REFUSED, "reason": reason, "message": message, "live": live_before}
        return Step(step.adapter, asked.model_copy(update=told))
    return _asked_again(around, step, gate)


def _promoted(around: Around, step: Step, before: AdapterStatus | None = None) -> Step:
    """It has passed, and serves once every pod leads its name to it: kubelets take a while to tell them. Pods that became
    ready after that are asked as well.
    """
    live = step.status.live
    assert live is not None
    if live.told and around.is_down:
        return Step(step.adapter, _degraded(step.status, OperatorReason.NoPods, "no pod of the live revision is ready"))
    if live.told and around.since <= (live.told_since or ""):
        return _lives(step, live)
    asked = step.status.model_copy(update={**_so_far(live, before), "asks_since": around.since})
    gate = around.gates.get(gate_job(around.serve, asked))
    if gate is not None and gate.verdict is Verdict.PASSED:
        return _lives(step, live.model_copy(update={"told": True, "told_since": around.since or None}))
    if around.live is None or (gate is not None and gate.verdict is Verdict.RUNNING):
        return Step(step.adapter, asked)
    if gate is None:
        return Step(step.adapter, asked, ask=True, pods=around.ready)
    return _asked_again(around, Step(step.adapter, _degraded(asked) if live.told else asked), gate)


def _so_far(live: LiveAdapter, before: AdapterStatus | None) -> dict[str, object]:
    """What is told while pods are asked: of one that served already, what they said before."""
    if live.told and before is not None and before.state in (AdapterState.LIVE, AdapterState.DEGRADED):
        return before.model_dump(include={"state", "reason", "message"})
    text = "it has passed its gate, and pods are told to lead its name to it"
    return {"state": AdapterState.PROMOTING, "reason": OperatorReason.AdapterPromoting, "message": text}


def _lives(step: Step, live: LiveAdapter) -> Step:
    told = {"state": AdapterState.LIVE, "live": live, "reason": None, "message": None, "gates_lost": None, "asks_since": None}
    return Step(step.adapter, step.status.model_copy(update=told))


def _degraded(asked: AdapterStatus, reason: str | None = None, message: str | None = None) -> AdapterStatus:
    return asked.model_copy(update={"state": AdapterState.DEGRADED, "reason": reason, "message": message})


def _asked_again(around: Around, step: Step, gate: Gate) -> Step:
    """Its gate came to no verdict: it is asked once more, after a pause."""
    lost, (reason, message) = step.status.gates_lost or 0, failure_of(gate)
    left = pause_left(gate, lost, around.now)
    text = "a pod does not lead its name to it" if gate.verdict is Verdict.FAILED else "it could not be asked"
    text = f"{text}, and will be asked again: {message}"
    told = step.status.model_copy(update={"reason": reason, "message": text})
    if left > 0:
        return Step(step.adapter, told, step.evaluation, requeue_after=left)
    again = told.model_copy(update={"gates_lost": lost + 1})
    return Step(step.adapter, again, step.evaluation, ask=True, pods=around.ready)


def _trial(around: Around, adapter: Adapter, found: Source) -> str:
    retry = around.serve.metadata.annotations.get(ANNOTATION_RETRY, "")
    revision = "" if around.live is None else around.live.name
    return short_hash(adapter.gate.model_dump_json(), retry, revision, found.evaluation or "", length=6)


def _gating(asked: AdapterStatus) -> AdapterStatus:
    text = "pods load it, and it is asked what its gate says"
    return asked.model_copy(update={"reason": OperatorReason.Gating, "message": text})


def _wanted(name: str, digest: str, uri: str, trial: str, *, serves: bool) -> WantedAdapter:
    return WantedAdapter(name=name, digest=digest, uri=uri, trial=trial, serves=serves)
