"""One revision serves, another may be on its way: what happens next. Pure.

nothing ─► Loading ── available ──► Gating ── passed ──► Live (the Service is pointed at it; the old one goes)
              │ bad                    │ bad   │ unknown: it is asked again
              └────────► Refused ◄─────┘       the live revision goes on serving; tried again only with another
                                               revision or trial (gate, annotation finetune.dev/retry)
What is away for a moment (a node, an image, a Secret, a store, the gate's pod) is waited for and never a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum

from finetune_operator.api.modelserve import ModelServe, Revision, RevisionState
from finetune_operator.decision import look_again, pause_after
from finetune_operator.meta import seconds_since, stamp
from finetune_operator.modelserve.loading import PATIENCE_SECONDS, Trouble, trouble
from finetune_operator.modelserve.model import Resolution
from finetune_operator.modelserve.observed import Deployed, Gate, Verdict, World
from finetune_operator.modelserve.plan import Target
from finetune_operator.modelserve.startup import budget
from finetune_operator.names import object_name
from finetune_trainer.contract.reasons.operator import OperatorReason

GATES_LOST_UNSEEN = 2  # after which somebody should look


class Standing(Enum):
    WORKING = "Working"
    STALLED = "Stalled"
    SERVING = "Serving"
    PAUSED = "Paused"


@dataclass(frozen=True)
class Case:
    """All that the next step depends on."""

    serve: ModelServe
    resolution: Resolution
    target: Target | None
    world: World
    now: datetime


@dataclass(frozen=True)
class Rollout:
    """How it stands, and what to do: `replicas` of the live revision and of the one that loads, and perhaps ask the gate."""

    standing: Standing
    reason: str
    message: str
    live: Revision | None = None
    candidate: Revision | None = None
    replicas: int = 0
    ask: bool = False  # start the gate
    requeue_after: float | None = None

    @property
    def loading(self) -> str | None:
        """The revision that is on its way."""
        return self.candidate.name if self.candidate and self.candidate.state is not RevisionState.REFUSED else None

    @property
    def kept(self) -> set[str]:
        """Revisions whose objects stay."""
        live = self.live.name if self.live else None
        return {name for name in (live, self.loading) if name is not None}


def next_rollout(case: Case) -> Rollout:
    """The next step. The same case gives the same one."""
    live, spec = _live(case), case.serve.spec
    later = look_again(case.serve.status.conditions, case.now)
    if case.world.stranger:
        name = object_name(case.serve.metadata.name)
        text = f"a Service {name} exists that this ModelServe does not own; delete it, or rename the ModelServe"
        return Rollout(Standing.STALLED, OperatorReason.NameTaken, text, live, replicas=spec.replicas, requeue_after=later)
    if spec.suspend or spec.replicas == 0:
        return _paused(case, live)
    obstacle, target = case.resolution.obstacle, case.target
    is_settled = live is not None and target is not None and live.name == target.revision
    if obstacle is not None and (target is None or (obstacle.blocks and not is_settled)):
        standing = Standing.STALLED if obstacle.stalled else Standing.WORKING
        waits = case.serve.status.candidate  # what it has loaded by now stays
        return Rollout(standing, obstacle.reason, obstacle.message, live, waits, spec.replicas, requeue_after=later)
    assert target is not None  # without an obstacle there is a model
    step = _settled(case, target, live) if live and is_settled else _candidate(case, target, live)
    if obstacle is not None:  # what was resolved before is rolled out all the same
        step = replace(
            step,
            standing=Standing.STALLED,
            reason=obstacle.reason,
            message=obstacle.message,
            requeue_after=later,
        )
    return step


def gate_job(serve: ModelServe, revision: str, trial: str, again: int = 0) -> str:
    """Name of the Job that asks one revision one gate's prompts, for the first time or once more."""
    return object_name(serve.metadata.name, revision, "gate", trial, *([str(again)] if again else []))


def gate_of(serve: ModelServe, revision: Revision) -> str:
    """Name of the gate's Job that counts for a revision."""
    return gate_job(serve, revision.name, revision.trial or "", revision.gates_lost or 0)


def _live(case: Case) -> Revision | None:
    """The revision that the Service selects; what is known of it comes from the status, or from its Deployment."""
    name, status = case.world.live, case.serve.status
    if name is None:
        return None
    known = next((r for r in (status.live, status.candidate) if r is not None and r.name == name), None)
    if known is None:
        deployed = case.world.deployed.get(name)
        known = Revision(
            name=name,
            state=RevisionState.LIVE,
            model_uri=deployed.model_uri if deployed else "",
            model_digest=deployed.model_digest if deployed else None,
        )
    gate = case.world.gates.get(gate_of(case.serve, known))
    rows = known.test_rows or (gate.test_rows if gate else None)
    return known.model_copy(update={"state": RevisionState.LIVE, "test_rows": rows})


def _paused(case: Case, live: Revision | None) -> Rollout:
    """No pods. A refusal is remembered, so that going on does not try it again."""
    known = case.serve.status.candidate
    refused = known if known and known.state is RevisionState.REFUSED else None
    if case.serve.spec.suspend:
        return Rollout(Standing.PAUSED, OperatorReason.Suspended, "spec.suspend is true: no pods", live, refused)
    return Rollout(Standing.PAUSED, OperatorReason.ScaledToZero, "spec.replicas is 0: no pods", live, refused)


def _settled(case: Case, target: Target, live: Revision) -> Rollout:
    """The revision that is asked for is the live one: keep it at its replicas."""
    wanted, deployed = case.serve.spec.replicas, case.world.deployed.get(target.revision)
    as_asked = deployed is not None and deployed.replicas == wanted and deployed.current
    if deployed is not None and as_asked and deployed.available >= wanted:
        return Rollout(Standing.SERVING, OperatorReason.Serving, f"revision {live.name} serves", live, replicas=wanted)
    found = _trouble(case, target, deployed)
    available = deployed.available if deployed else 0
    text = f"{available} of {wanted} pods of the live revision are available"
    told = Rollout(Standing.WORKING, OperatorReason.Scaling, text, live, replicas=wanted, requeue_after=PATIENCE_SECONDS)
    if found is None:
        return told
    if not found.bad and not found.stuck:
        return replace(told, reason=found.reason, message=f"{text}: {found.message}")
    # It has served: whatever broke it may heal, so it is never given up, but somebody should look.
    return replace(told, standing=Standing.STALLED, reason=found.reason, message=f"{text}: {found.message}")


def _candidate(case: Case, target: Target, live: Revision | None) -> Rollout:
    """Another revision than the live one is asked for: take it one step further."""
    candidate, wanted = _known(case, target), case.serve.spec.replicas
    deployed = case.world.deployed.get(target.revision)
    if candidate.state is RevisionState.REFUSED:
        return _refusal(candidate, live, wanted)
    gate = case.world.gates.get(gate_of(case.serve, candidate))
    if gate is not None:
        candidate = candidate.model_copy(update={"test_rows": gate.test_rows})
    step = Rollout(Standing.WORKING, OperatorReason.Loading, "", live, candidate, wanted)
    if deployed is None or deployed.replicas != wanted:
        return replace(step, message=f"starting revision {target.revision} of {target.model.uri}")
    if gate is not None and gate.verdict is Verdict.FAILED:
        return _refusal(_refused(candidate, *_gate_failure(gate)), live, wanted)
    found = _trouble(case, target, deployed)
    if found is not None and found.bad:
        return _refusal(_refused(candidate, found.reason, found.message), live, wanted)
    if not deployed.current or deployed.available < wanted:
        text = f"revision {target.revision} loads: {deployed.available} of {wanted} pods are available"
        step = replace(step, message=text, requeue_after=PATIENCE_SECONDS)  # patience ends without an event
        if found is None:
            return step
        standing = Standing.STALLED if found.stuck else Standing.WORKING
        return replace(step, standing=standing, reason=found.reason, message=f"{text}; {found.message}")
    if gate is not None and gate.verdict is Verdict.PASSED:
        now_live = candidate.model_copy(update={"state": RevisionState.LIVE})
        text = f"revision {target.revision} passed its gate and serves"
        return Rollout(Standing.SERVING, OperatorReason.Serving, text, now_live, replicas=wanted)
    gating = candidate.model_copy(update={"state": RevisionState.GATING})
    if gate is not None and gate.verdict is Verdict.UNKNOWN:
        return _ask_again(replace(step, candidate=gating), gating, gate, case.now)
    text = f"revision {target.revision} is asked the prompts of spec.rollout.gate"
    return replace(step, reason=OperatorReason.Gating, message=text, candidate=gating, ask=gate is None)


def _ask_again(step: Rollout, candidate: Revision, gate: Gate, now: datetime) -> Rollout:
    """The gate came to no verdict: it is asked once more, after a pause."""
    lost = candidate.gates_lost or 0
    reason, why = _gate_failure(gate)
    left = pause_after(lost + 1) - (seconds_since(gate.ended_at, now) if gate.ended_at else 0)
    text = f"revision {candidate.name} could not be asked the prompts of spec.rollout.gate, and will be asked again: {why}"
    standing = Standing.STALLED if lost >= GATES_LOST_UNSEEN else Standing.WORKING
    step = replace(step, standing=standing, reason=reason, message=text)
    if left > 0:
        return replace(step, requeue_after=left)
    return replace(step, candidate=candidate.model_copy(update={"gates_lost": lost + 1}), ask=True)


def _known(case: Case, target: Target) -> Revision:
    """The candidate as it was, if it is still the one that is asked for; otherwise a new one."""
    before = case.serve.status.candidate
    if before and before.name == target.revision and before.trial == target.trial:
        return before
    return Revision(
        name=target.revision,
        state=RevisionState.LOADING,
        model_uri=target.model.uri,
        model_digest=target.model.digest,
        created_at=stamp(case.now),
        trial=target.trial,
    )


def _trouble(case: Case, target: Target, deployed: Deployed | None) -> Trouble | None:
    if deployed is None:
        return None
    return trouble(deployed, budget(case.serve.spec, target.model).start, case.now)


def _gate_failure(gate: Gate) -> tuple[str, str]:
    if gate.failure is not None:
        return gate.failure.reason, gate.failure.message
    return OperatorReason.GateNotAsked, f"the gate's Job {gate.job} came to no verdict, {gate.reason}: {gate.message}"


def _refused(candidate: Revision, reason: str, message: str) -> Revision:
    return candidate.model_copy(update={"state": RevisionState.REFUSED, "reason": reason, "message": message})


def _refusal(candidate: Revision, live: Revision | None, replicas: int) -> Rollout:
    rest = f"revision {live.name} goes on serving" if live else "nothing serves"
    text = f"revision {candidate.name} was refused and {rest}: {candidate.message}"
    return Rollout(Standing.STALLED, candidate.reason or OperatorReason.RevisionRefused, text, live, candidate, replicas)
