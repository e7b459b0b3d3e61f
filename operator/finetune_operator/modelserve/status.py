"""The status of a ModelServe, from what was decided. The only place that knows condition types.

standing    Ready   Reconciling   Stalled   kstatus       Available: some good revision answers, whatever is asked for
WORKING     False   True          -         InProgress
STALLED     False   -             True      Failed
SERVING     True    -             -         Current
PAUSED      True    -             -         Current       (reason Suspended or ScaledToZero; Available is False)
 asleep     True    -             -         Current       (reason ScaledToZero; Available is True: a request will be answered)
Reconciling and Stalled are absent where they don't hold; Ready and Available, which are asked for by name, are always told.
AdaptersReady is told where there are adapters, and changes none of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from finetune_operator.api.adapters import AdapterState, AdapterStatus
from finetune_operator.api.modelserve import FormerRevision, ModelServeStatus, Revision, RevisionState
from finetune_operator.api.rollout import Strategy
from finetune_operator.conditions import LONGEST_MESSAGE, Told, Truth, conditions
from finetune_operator.decision import Event
from finetune_operator.meta import stamp
from finetune_operator.modelserve import route, sleeping
from finetune_operator.modelserve.case import Case, Rollout, Standing, history_after
from finetune_operator.modelserve.history import Promotion
from finetune_operator.modelserve.objects import revision_labels, service_url
from finetune_operator.modelserve.pod import served_name
from finetune_operator.names import ANNOTATION_MODEL_URI, object_name
from finetune_trainer.contract.reasons.operator import OperatorReason


def next_status(case: Case, rollout: Rollout, adapters: Sequence[AdapterStatus] = ()) -> ModelServeStatus:
    """The whole status."""
    serve, live = case.serve, rollout.live
    deployed = case.world.deployed.get(live.name) if live else None
    selector = revision_labels(serve, live.name) if live else {}
    return ModelServeStatus(
        observed_generation=serve.metadata.generation,
        conditions=conditions(
            [*_told_conditions(case, rollout), *_of_adapters(adapters)],
            serve.status.conditions,
            serve.metadata.generation,
            case.now,
        ),
        model=case.resolution.model,
        live=live,
        candidate=_told(rollout.candidate),
        rollback_window=rollout.window,
        canary=rollout.canary,
        route=case.world.route,
        adapters=[told.model_copy(update={"message": told.message and told.message[:LONGEST_MESSAGE]}) for told in adapters],
        history=[_former(case, promotion) for promotion in history_after(case, rollout)],
        url=_url(case) if live else None,
        served_name=served_name(serve),
        replicas=deployed.ready if deployed else 0,
        selector=",".join(f"{k}={v}" for k, v in selector.items()),
    )


def _url(case: Case) -> str:
    wanted, stands = case.serve.spec.route, case.world.route
    outside = route.url(wanted) if wanted is not None and stands is not None and stands.accepted else None
    return outside or service_url(case.serve, object_name(case.serve.metadata.name))


def _former(case: Case, promotion: Promotion) -> FormerRevision:
    notes = case.world.records.get(promotion.revision, {}).get("metadata", {}).get("annotations", {})
    return FormerRevision(
        name=promotion.revision,
        model_uri=notes.get(ANNOTATION_MODEL_URI, ""),
        promoted_at=stamp(promotion.promoted_at),
        rolled_back=promotion.rolled_back.reason if promotion.rolled_back else None,
    )


def rendered(status: ModelServeStatus) -> dict[str, Any]:
    """The status as the API server takes it."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def events(before: ModelServeStatus, after: ModelServeStatus) -> Iterator[Event]:
    """What is worth an event, from two statuses: a revision loads, is refused, takes over; something stalls."""
    old, new = before.candidate, after.candidate
    refused = new is not None and new.state is RevisionState.REFUSED
    if new is not None and not refused and (old is None or (old.name, old.trial) != (new.name, new.trial)):
        yield Event(OperatorReason.RevisionLoading, f"revision {new.name} of {new.model_uri} is started")
    if new is not None and refused and (old is None or (old.trial, old.state) != (new.trial, new.state)):
        reason = OperatorReason.RevisionRolledBack if new.rolled_back_at else OperatorReason.RevisionRefused
        yield Event(reason, f"revision {new.name}, {new.reason}: {new.message}"[:LONGEST_MESSAGE], warning=True)
    if (
        new is not None
        and new.strategy is Strategy.RECREATE
        and (old is None or (old.name, old.strategy) != (new.name, new.strategy))
    ):
        yield Event(OperatorReason.Recreating, f"revision {new.name}: {new.strategy_message}", warning=True)
    if new is not None and new.state is RevisionState.PASSED and (old is None or old.state is not new.state):
        yield Event(OperatorReason.AwaitingPromotion, f"revision {new.name} has passed its gate and waits to be promoted")
    share = after.canary
    if new is not None and share is not None and share.since and (before.canary is None or before.canary.since != share.since):
        yield Event(OperatorReason.Canary, f"revision {new.name} takes {share.share:g} % of the traffic, step {share.step}")
    if after.live is not None and (before.live is None or before.live.name != after.live.name):
        text = f"revision {after.live.name} of {after.live.model_uri} serves now{_compared(after.live)}"
        yield Event(OperatorReason.RevisionLive, text)
    yield from _adapter_events(before, after)
    stalled = next((c for c in after.conditions if c.type == "Stalled"), None)
    was = next((c for c in before.conditions if c.type == "Stalled"), None)
    if stalled is not None and not refused and (was is None or was.reason != stalled.reason):
        yield Event(stalled.reason, stalled.message, warning=True)


def _adapter_events(before: ModelServeStatus, after: ModelServeStatus) -> Iterator[Event]:
    was = {told.name: told for told in before.adapters}
    for told in after.adapters:
        old = was.get(told.name)
        if old is not None and (old.state, old.digest, old.trial) == (told.state, told.digest, told.trial):
            continue
        if told.state is AdapterState.LIVE:
            yield Event(OperatorReason.AdapterLive, f"{told.name} is answered by the adapter {told.uri} now")
        if told.state is AdapterState.DEGRADED:
            yield Event(OperatorReason.AdapterDegraded, f"the adapter {told.name}: {told.message}", warning=True)
        if told.state is AdapterState.REFUSED:
            text = f"the adapter {told.name} was refused, {told.reason}: {told.message}"
            yield Event(OperatorReason.AdapterNotServed, text, warning=True)


def _compared(live: Revision) -> str:
    """What a revision scored beside the one that was live."""
    text = ""
    if (found := live.held_out) is not None:
        text += f": {found.metric} {found.score:g} on {found.rows} test rows, {found.live_score:g} of revision {found.against}"
    if (said := live.judged) is not None:
        text += f"; win rate {said.win_rate:g} ({said.low:g} to {said.high:g}) against {said.against} by {said.model}"
    return text


def _told(candidate: Revision | None) -> Revision | None:
    if candidate is None or candidate.message is None:
        return candidate
    return candidate.model_copy(update={"message": candidate.message[:LONGEST_MESSAGE]})


def _told_conditions(case: Case, rollout: Rollout) -> Iterator[Told]:
    standing, why = rollout.standing, (rollout.reason, rollout.message)
    yield Told("Ready", "True" if standing in (Standing.SERVING, Standing.PAUSED) else "False", *why)
    if standing is Standing.WORKING:
        yield Told("Reconciling", "True", *why)
    if standing is Standing.STALLED:
        yield Told("Stalled", "True", *why)
    yield Told("Available", *_available(case, rollout))


def _of_adapters(adapters: Sequence[AdapterStatus]) -> Iterator[Told]:
    """A condition of its own: who waits for the model, or for another adapter, does not wait for these."""
    refused = [told for told in adapters if told.state is AdapterState.REFUSED]
    lacking = [told for told in adapters if told.state is AdapterState.DEGRADED]
    late = [told for told in adapters if told.state is not AdapterState.LIVE]
    if refused:
        first = refused[0]
        text = f"{len(refused)} of {len(adapters)} adapters are refused; {first.name}: {first.message}"
        yield Told("AdaptersReady", "False", first.reason or OperatorReason.AdapterNotServed, text)
    elif lacking:
        yield Told("AdaptersReady", "False", OperatorReason.AdapterDegraded, f"{lacking[0].name}: {lacking[0].message}")
    elif late:
        text = f"{late[0].name}: {late[0].message}"
        yield Told("AdaptersReady", "False", OperatorReason.AdaptersOnTheirWay, text)
    elif adapters:
        yield Told("AdaptersReady", "True", OperatorReason.AdaptersLive, f"{len(adapters)} adapters answer")


def _available(case: Case, rollout: Rollout) -> tuple[Truth, str, str]:
    live = rollout.live
    if rollout.standing is Standing.PAUSED and not rollout.sleeps:
        return "False", rollout.reason, rollout.message
    if live is None:
        return "False", OperatorReason.NothingLive, "no revision has passed its gate yet"
    deployed = case.world.deployed.get(live.name)
    if (held := _held(case, rollout, live)) is not None:
        return held
    if rollout.is_live_stopped and rollout.candidate is not None:
        return "False", OperatorReason.Recreating, f"revision {rollout.candidate.name}: {rollout.candidate.strategy_message}"
    if deployed is None or deployed.available == 0:
        return "False", OperatorReason.NoPods, f"no pod of the live revision {live.name} is available"
    return "True", OperatorReason.Answering, f"{deployed.available} pods of revision {live.name} answer"


def _held(case: Case, rollout: Rollout, live: Revision) -> tuple[Truth, str, str] | None:
    """While it sleeps, and while pods are on their way: requests are held, by a gateway that is there."""
    waits = rollout.sleeps or (rollout.standing is Standing.WORKING and not rollout.is_live_stopped)
    deployed, scaling = case.world.deployed.get(live.name), case.serve.spec.autoscaling
    if not waits or not sleeping.goes_through(case, live) or scaling is None:
        return None
    if deployed is not None and deployed.available > 0:
        return None
    text = f"requests are held until a pod of revision {live.name} answers, for {scaling.hold_seconds} s at most"
    return "True", OperatorReason.Holding, text
