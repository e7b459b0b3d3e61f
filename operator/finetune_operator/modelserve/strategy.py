"""Whether a new revision loads beside the live one, or in its place. Pure.

Surge     beside it; where no node has room, it waits, and the live one goes on
Recreate  the live one is stopped first: nothing answers until the new one has passed its gate, or the old one is back
Auto      beside it; where no node has had room for a while, in its place, if spec.rollout.maxDowntimeSeconds bears that
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_operator.api.modelserve import Revision
from finetune_operator.api.rollout import PromotionPolicy, Strategy
from finetune_operator.meta import seconds_since
from finetune_operator.modelserve.case import Case
from finetune_operator.modelserve.deployed import Deployed
from finetune_operator.modelserve.loading import Trouble
from finetune_operator.modelserve.plan import Target
from finetune_operator.modelserve.startup import budget
from finetune_trainer.contract.reasons.operator import OperatorReason


@dataclass(frozen=True)
class Downtime:
    """How long nothing will answer while one revision is stopped and another loads."""

    seconds: int
    text: str


@dataclass(frozen=True)
class Choice:
    strategy: Strategy  # Surge or Recreate
    text: str  # why, and what it means for those who ask


def choose(case: Case, target: Target, candidate: Revision, live: Revision, found: Trouble | None) -> Choice:
    """How this revision is to load. What was begun in the live one's place goes on so: its pods are gone by now."""
    asked, down = case.serve.spec.rollout.strategy, downtime(case, target, live)
    if candidate.strategy is Strategy.RECREATE and asked is not Strategy.SURGE and candidate.strategy_message:
        return Choice(Strategy.RECREATE, candidate.strategy_message)  # foretold while the live one's pods still told of it
    stopped = f"revision {live.name} is stopped until then: nothing answers for {down.text}, and while the gate asks"
    if asked is Strategy.RECREATE:
        return Choice(Strategy.RECREATE, f"{stopped}, as spec.rollout.strategy is Recreate")
    no_room = found is not None and found.reason == OperatorReason.Unschedulable and found.stuck
    if asked is Strategy.AUTO and (_is_begun(case, candidate, live) or (no_room and _is_borne(case, down))):
        return Choice(Strategy.RECREATE, f"{stopped}, as no node has room for both")
    if not no_room:
        return Choice(Strategy.SURGE, f"beside revision {live.name}, which goes on serving")
    remedy = (
        f"spec.rollout.strategy Recreate stops it first, and so does Auto with maxDowntimeSeconds of {down.seconds} or more"
    )
    text = f"no node has room beside revision {live.name}, which goes on serving: add one, or free one; {remedy}"
    return Choice(Strategy.SURGE, f"{text}: then nothing answers for {down.text}")


def downtime(case: Case, target: Target, live: Revision) -> Downtime:
    """The time that the live revision took to load; where no pod of it tells, the startup budget."""
    deployed = case.world.deployed.get(live.name)
    if deployed is not None and (took := _load_seconds(deployed)) is not None:
        return Downtime(took, f"about {took} s, as long as that one took to load")
    limits = budget(case.serve.spec, target.model)
    return Downtime(limits.load + limits.start, f"up to {limits.load + limits.start} s")


def _load_seconds(deployed: Deployed) -> int | None:
    """From a node's having the pod to its being ready; a pod that was unready once looks slower, so the quickest counts."""
    took = [_seconds(p.placed_at, p.ready_changed_at) for p in deployed.pods if p.ready and p.ready_changed_at and p.placed_at]
    return min(took, default=None)


def _seconds(start: str, end: str) -> int:
    return max(1, round(seconds_since(start, datetime.fromisoformat(end))))


def _is_begun(case: Case, candidate: Revision, live: Revision) -> bool:
    """The status may be lost; that the live one has no pods beside a candidate that has some tells the same."""
    if candidate.strategy is Strategy.RECREATE:
        return True
    stopped, loading = case.world.deployed.get(live.name), case.world.deployed.get(candidate.name)
    return stopped is not None and stopped.replicas == 0 and loading is not None and loading.replicas > 0


def _is_borne(case: Case, down: Downtime) -> bool:
    """A person who promotes by hand may be away: that would be an outage without an end. A gate that compares needs both
    revisions, and so does a canary.
    """
    rollout = case.serve.spec.rollout
    if rollout.promotion is PromotionPolicy.MANUAL or rollout.gate.compares or rollout.canary is not None:
        return False
    return down.seconds <= rollout.max_downtime_seconds
