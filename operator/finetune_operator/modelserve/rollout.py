"""One revision serves, another may be on its way: what happens next. Pure.

nothing ─► Loading ── available ──► Gating ── passed ──► Live (the Service is pointed at it; the old one stays warm for a while)
              │ bad                    │ bad   │ unknown: it is asked again      │ bad within its window: the Service is
              └────────► Refused ◄─────┴────────────────────────────────────────┘ pointed at the old one again
                 the revision before goes on serving; tried again only with another revision or trial (gate, annotation
                 finetune.dev/retry)
What is away for a moment (a node, an image, a Secret, a store, the gate's pod) is waited for and never a verdict.
candidate.py takes a revision to its promotion, window.py watches it after that.
"""

from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.modelserve import Revision, RevisionState, RollbackWindow
from finetune_operator.decision import look_again
from finetune_operator.meta import stamp
from finetune_operator.modelserve import candidate, history, pacing, sleeping, window
from finetune_operator.modelserve.case import Case, Rollout, Standing, refusal, refused
from finetune_operator.modelserve.gating import gate_of
from finetune_operator.modelserve.loading import PATIENCE_SECONDS, trouble
from finetune_operator.modelserve.plan import Target
from finetune_operator.modelserve.startup import budget
from finetune_operator.names import object_name
from finetune_trainer.contract.reasons.operator import OperatorReason


def next_rollout(case: Case) -> Rollout:
    """The next step. The same case gives the same one."""
    live, spec = _live(case), case.serve.spec
    later = look_again(case.serve.status.conditions, case.now)
    if case.world.stranger:
        name = object_name(case.serve.metadata.name)
        text = f"a Service {name} exists that this ModelServe does not own; delete it, or rename the ModelServe"
        waits = case.serve.status.candidate
        return Rollout(Standing.STALLED, OperatorReason.NameTaken, text, live, waits, spec.replicas, requeue_after=later)
    if spec.suspend or spec.replicas == 0:
        return _paused(case, live)
    obstacle, target = case.resolution.obstacle, case.target
    is_settled = live is not None and target is not None and live.name == target.revision
    if obstacle is not None and (target is None or (obstacle.blocks and not is_settled)):
        standing = Standing.STALLED if obstacle.stalled else Standing.WORKING
        waits = case.serve.status.candidate  # what it has loaded by now stays
        return Rollout(standing, obstacle.reason, obstacle.message, live, waits, spec.replicas, requeue_after=later)
    assert target is not None  # without an obstacle there is a model
    if live and is_settled:
        step = _settled(case, target, live)
    else:
        step = pacing.waits(case, target, live) or candidate.next_step(case, target, live)
    if obstacle is not None:  # what was resolved before is rolled out all the same
        step = replace(
            step,
            standing=Standing.STALLED,
            reason=obstacle.reason,
            message=obstacle.message,
            requeue_after=later,
        )
    return step


def _live(case: Case) -> Revision | None:
    """The revision that the Service selects; what is known of it comes from the status, or from its Deployment.

    A Service that is away, or selects what never was, takes nothing down: the status tells what it selected.
    """
    status, world = case.serve.status, case.world
    told = status.live.name if status.live and not world.stranger else None
    name = next((n for n in (world.live, told) if n in world.records or n in world.deployed), world.live)
    if name is None:
        return None
    known = next((r for r in (status.live, status.candidate) if r is not None and r.name == name), None)
    known = _served(case, name, known)
    asked = (gate_of(case.serve, known), window.watch_job(case.serve, known))
    numbers = {k: v for name in asked if (gate := case.world.gates.get(name)) for k, v in gate.numbers.items()}
    return known.model_copy(update={k: v for k, v in numbers.items() if getattr(known, k) is None})


def _served(case: Case, name: str, known: Revision | None = None) -> Revision:
    """A revision that takes traffic, or has taken it."""
    deployed, told = case.world.deployed.get(name), history.of(case.world.history, name)
    known = known or Revision(
        name=name,
        state=RevisionState.LIVE,
        model_uri=deployed.model_uri if deployed else "",
        model_digest=deployed.model_digest if deployed else None,
    )
    since = known.promoted_at or (deployed.created_at if deployed else stamp(case.now))  # of releases without a history
    since = stamp(told.promoted_at) if told else since
    return known.model_copy(update={"state": RevisionState.LIVE, "promoted_at": since, "strategy_message": None})


def _paused(case: Case, live: Revision | None) -> Rollout:
    """No pods. A refusal is remembered, so that going on does not try it again."""
    known = case.serve.status.candidate
    given_up = known if known and known.state is RevisionState.REFUSED else None
    if case.serve.spec.suspend:
        return Rollout(Standing.PAUSED, OperatorReason.Suspended, "spec.suspend is true: no pods", live, given_up)
    return Rollout(Standing.PAUSED, OperatorReason.ScaledToZero, "spec.replicas is 0: no pods", live, given_up)


def _settled(case: Case, target: Target, live: Revision) -> Rollout:
    """The revision that is asked for is the live one: keep it at its replicas, and for a while the one before."""
    opened = window.window(case, live)
    if (left := _left(case, target, live, opened)) is not None:
        return left
    if opened is None and (slept := sleeping.asleep(case, live)) is not None:
        return slept
    told = _kept(case, target, live)
    return told if opened is None else window.watched(case, told, opened)


def _kept(case: Case, target: Target, live: Revision) -> Rollout:
    wanted, deployed = case.serve.spec.replicas, case.world.deployed.get(target.revision)
    as_asked = deployed is not None and deployed.replicas == wanted and deployed.current
    if deployed is not None and as_asked and deployed.available >= wanted:
        reason = OperatorReason.Pinned if target.pinned_by else OperatorReason.Serving
        text = f"revision {live.name} serves" + (f", as {target.pinned_by} says" if target.pinned_by else "")
        return Rollout(Standing.SERVING, reason, text, live, replicas=wanted)
    found = None if deployed is None else trouble(deployed, budget(case.serve.spec, target.model).start, case.now)
    available = deployed.available if deployed else 0
    text = f"{available} of {wanted} pods of the live revision are available"
    told = Rollout(Standing.WORKING, OperatorReason.Scaling, text, live, replicas=wanted, requeue_after=PATIENCE_SECONDS)
    if found is None:
        return told
    if not found.bad and not found.stuck:
        return replace(told, reason=found.reason, message=f"{text}: {found.message}")
    # It has served: whatever broke it may heal, so it is never given up, but somebody should look.
    return replace(told, standing=Standing.STALLED, reason=found.reason, message=f"{text}: {found.message}")


def _left(case: Case, target: Target, live: Revision, opened: RollbackWindow | None) -> Rollout | None:
    """Traffic goes back to the revision before, where this one proves bad and that one answers."""
    if opened is None or case.world.deployed[opened.revision].available == 0:
        return None
    if (found := window.fault(case, target, live)) is None:
        return None
    noted = {"trial": target.trial, "rolled_back_at": stamp(case.now)}
    bad = refused(live, found.reason, found.message).model_copy(update=noted)
    again = _served(case, opened.revision).model_copy(update={"promoted_at": stamp(case.now)})
    return refusal(bad, again, case.serve.spec.replicas)
