"""A canary: a revision that has passed its gate takes a share of the traffic, step by step, before it takes all. Pure.

passed ─► step 1: its pods are up ─► its weight ─► pauseSeconds, or until somebody lets it go on ─► step 2 … ─► promoted
             └─ an engine ends, fails its probe, errs too often, is too slow: the live one has all traffic again; Refused

Route     by weights of the HTTPRoute, of what comes through it; the candidate has pods in proportion
Replicas  by the number of its pods: the Service selects those of both revisions. The live one keeps all of its own, so that
          the way back is warm; so a candidate has half at most
status.canary tells how far it is. Where that is lost, it begins with the first step again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from finetune_operator.api.modelserve import CanaryShare, Revision, RevisionState, RollbackWindow, ShareBy
from finetune_operator.api.rollout import CanaryStep
from finetune_operator.meta import seconds_since, stamp
from finetune_operator.modelserve import window
from finetune_operator.modelserve.case import Case, Rollout, Standing, refusal, refused
from finetune_operator.modelserve.loading import PATIENCE_SECONDS, Trouble
from finetune_operator.modelserve.plan import Target
from finetune_operator.names import ANNOTATION_PROMOTE
from finetune_trainer.contract.reasons.operator import OperatorReason

ALL_STEPS = 1000
NEAR = 1.0  # percent, within which a share is what was asked for
LONGEST_WATCH = timedelta(days=7)


def is_asked(case: Case, target: Target, step: Rollout) -> bool:
    """Whether a candidate takes shares first: not where it replaces nothing, was pinned, or the live one is stopped for it."""
    beside = step.live is not None and not step.is_live_stopped
    return case.serve.spec.rollout.canary is not None and beside and target.pinned_by is None


def let_through(case: Case, candidate: Revision) -> int:
    """To which step somebody lets it go on: the annotation is REVISION, all the way, or REVISION/2."""
    name, slash, number = case.serve.metadata.annotations.get(ANNOTATION_PROMOTE, "").partition("/")
    if name != candidate.name:
        return 0
    if not slash:
        return ALL_STEPS
    return int(number) if re.fullmatch("[0-9]{1,3}", number) else 0


def first_pods(case: Case) -> int:
    """With how many pods a candidate loads and is asked."""
    return _pods(case, _steps(case)[0])


def next_share(case: Case, target: Target, step: Rollout, found: Trouble | None) -> Rollout:
    """A candidate that has passed its gate: the share that it has now, or its end."""
    assert step.candidate is not None
    known = step.candidate
    candidate = known.model_copy(update={"state": RevisionState.CANARY})
    before = case.serve.status.canary if known.state is RevisionState.CANARY else None
    before = before or CanaryShare(step=1, weight=0, share=0, by=_by(case))
    if (end := _bad(case, target, replace(step, candidate=candidate), before, found)) is not None:
        return end
    steps, at = _steps(case), _at(case, candidate, before)
    wanted, mine = step.replicas if at > len(steps) else _pods(case, steps[at - 1]), _available(case, candidate)
    if at > len(steps) and mine >= wanted:
        return window.promoted(case, candidate, step.replicas)
    share = before if at > len(steps) else _reached(case, before, at, mine >= wanted)
    if share.weight and not before.weight:
        candidate = candidate.model_copy(update={"promoted_at": stamp(case.now)})
    step = replace(step, candidate=candidate, candidate_replicas=wanted)
    return _told(case, step, share, at, found)


def way_back(rollout: Rollout) -> RollbackWindow | None:
    """What a watch is told of a candidate that takes a share."""
    live, candidate, share = rollout.live, rollout.candidate, rollout.canary
    if live is None or candidate is None or candidate.promoted_at is None or share is None:
        return None
    until = datetime.fromisoformat(candidate.promoted_at) + LONGEST_WATCH
    return RollbackWindow(revision=live.name, until=stamp(until), signals=share.signals)


def _bad(case: Case, target: Target, step: Rollout, before: CanaryShare, found: Trouble | None) -> Rollout | None:
    """Traffic goes back where the candidate proves bad and the live revision answers."""
    candidate, live = step.candidate, step.live
    assert candidate is not None
    assert live is not None
    if before.weight == 0:
        if found is None or not found.bad:
            return None
        return refusal(refused(candidate, found.reason, found.message), live, step.replicas)
    if _available(case, live) == 0 or (fault := window.fault(case, target, candidate)) is None:
        return None
    watched = case.world.gates.get(window.watch_job(case.serve, candidate))
    noted = {"rolled_back_at": stamp(case.now), **(watched.numbers if watched else {})}
    bad = refused(candidate, fault.reason, f"with {before.share:g} % of the traffic, {fault.message}")
    return refusal(bad.model_copy(update=noted), live, step.replicas)


def _at(case: Case, candidate: Revision, before: CanaryShare) -> int:
    """The step that it is to be at, from 1; above the last one where it is to take all."""
    steps, at = _steps(case), before.step
    if at <= len(steps) and (end := _until(steps[at - 1], before.since)) is not None and seconds_since(end, case.now) >= 0:
        at += 1
    return min(max(at, let_through(case, candidate)), len(steps) + 1)


def _reached(case: Case, before: CanaryShare, at: int, is_up: bool) -> CanaryShare:
    """The step with its weight, once its pods were up; until then that of the step before."""
    since = before.since if before.step == at else None
    if since is None and not is_up:
        return before.model_copy(update={"step": at, "since": None})
    return before.model_copy(update={"step": at, "weight": _steps(case)[at - 1].weight, "since": since or stamp(case.now)})


def _told(case: Case, step: Rollout, share: CanaryShare, at: int, found: Trouble | None) -> Rollout:
    """The share as it really is, and what it waits for."""
    assert step.candidate is not None
    assert step.live is not None
    candidate, steps, by = step.candidate, _steps(case), _by(case)
    mine, others = _available(case, candidate), _available(case, step.live)
    until = _until(steps[at - 1], share.since) if at <= len(steps) else None
    signals = window.signals(case, candidate, step.live.name) if share.weight else []
    has = {"by": by, "share": _share(by, share.weight, mine, others), "until": until, "signals": signals}
    share = share.model_copy(update=has)
    text = f"{_taken(case, step, share)}; {_waits_for(case, step, share, at)}"
    if signals:
        text += f"; revision {step.live.name} takes all again if {' or '.join(s.value.lower() for s in signals)} are bad"
    is_reached = share.since is not None and at <= len(steps)
    looks = [window.until_unready(case, candidate), None if is_reached else PATIENCE_SECONDS]
    looks += [] if until is None else [-seconds_since(until, case.now)]
    soonest = min((seconds for seconds in looks if seconds is not None), default=None)
    reason = OperatorReason.AwaitingPromotion if is_reached and until is None else OperatorReason.Canary
    step = replace(step, reason=reason, message=text, canary=share, requeue_after=soonest)
    if found is None:
        return step
    standing = Standing.STALLED if found.stuck else Standing.WORKING
    return replace(step, standing=standing, reason=found.reason, message=f"{text}; {found.message}")


def _taken(case: Case, step: Rollout, share: CanaryShare) -> str:
    """What it has of the traffic, and why that is not what was asked for."""
    assert step.candidate is not None
    assert step.live is not None
    mine, others = _available(case, step.candidate), _available(case, step.live)
    what = "what comes through the HTTPRoute" if share.by is ShareBy.ROUTE else "the traffic"
    text = f"revision {step.candidate.name} takes {share.share:g} % of {what}"
    if share.by is ShareBy.REPLICAS and share.weight:
        text += f" by {mine} of {mine + others} pods"
    if abs(share.share - share.weight) <= NEAR:
        return text
    if mine < step.pods:
        return f"{text}, as {mine} of its {step.pods} pods are available, and not {share.weight} %"
    if others < step.replicas:
        return (
            f"{text}, as {others} of {step.replicas} pods of revision {step.live.name} are available, and not {share.weight} %"
        )
    nearer = f"no number of pods is nearer to {share.weight} % beside the {others} of revision {step.live.name}, which stay"
    return f"{text}: {nearer}; spec.route gives any share"


def _waits_for(case: Case, step: Rollout, share: CanaryShare, at: int) -> str:
    assert step.candidate is not None
    steps, mine = _steps(case), _available(case, step.candidate)
    if at > len(steps):
        return f"it takes all once {step.pods} pods are available, {mine} are"
    place = f"step {at} of {len(steps)}"
    if share.since is None:
        return f"{place}, {steps[at - 1].weight} %, begins once {step.pods} pods are available, {mine} are"
    if share.until is not None:
        return f"{place}, until {share.until}"
    return f"{place} waits to be let on: {command(case, step.candidate, at + 1)}"


def command(case: Case, candidate: Revision, step: int | None) -> str:
    """What somebody writes to let a revision go on: to this step, or all the way."""
    text = f"kubectl annotate --overwrite mserve {case.serve.metadata.name} {ANNOTATION_PROMOTE}={candidate.name}"
    return text if step is None else f"{text}/{step}; without /{step} it takes all"


def _share(by: ShareBy, weight: int, mine: int, others: int) -> float:
    """Percent that a candidate with so many available pods has. Where the other one has none, no request is sent to it."""
    if weight == 0 or mine == 0:
        return 0
    if others == 0:
        return 100
    return weight if by is ShareBy.ROUTE else round(100 * mine / (mine + others), 1)


def _pods(case: Case, step: CanaryStep) -> int:
    """How many pods a step takes: in proportion, or those that come nearest beside the live ones, fewest first."""
    live = case.serve.spec.replicas
    if _by(case) is ShareBy.ROUTE:
        return math.ceil(live * step.weight / 100)
    return min(range(1, live + 1), key=lambda pods: abs(step.weight - 100 * pods / (pods + live)))


def _by(case: Case) -> ShareBy:
    return ShareBy.ROUTE if case.world.route is not None and case.world.route.accepted else ShareBy.REPLICAS


def _steps(case: Case) -> Sequence[CanaryStep]:
    asked = case.serve.spec.rollout.canary
    return asked.steps if asked is not None else ()


def _until(step: CanaryStep, since: str | None) -> str | None:
    """When a step ends by itself."""
    if since is None or step.pause_seconds is None:
        return None
    return stamp(datetime.fromisoformat(since) + timedelta(seconds=step.pause_seconds))


def _available(case: Case, revision: Revision) -> int:
    deployed = case.world.deployed.get(revision.name)
    return 0 if deployed is None else deployed.available
