"""A revision that is on its way: started, loaded, asked, promoted or refused. Pure."""

from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.modelserve import Revision, RevisionState
from finetune_operator.api.rollout import PromotionPolicy, Strategy
from finetune_operator.meta import stamp
from finetune_operator.modelserve import canary, history, strategy, window
from finetune_operator.modelserve.case import Case, Rollout, Standing, refusal, refused
from finetune_operator.modelserve.deployed import Deployed
from finetune_operator.modelserve.gating import ask_again, failure_of, gate_of
from finetune_operator.modelserve.loading import PATIENCE_SECONDS, Trouble, trouble
from finetune_operator.modelserve.observed import Gate, Verdict
from finetune_operator.modelserve.plan import Target
from finetune_operator.modelserve.startup import budget
from finetune_trainer.contract.reasons.operator import OperatorReason


def next_step(case: Case, target: Target, live: Revision | None) -> Rollout:
    """Another revision than the live one is asked for: take it one step further."""
    candidate, deployed = _known(case, target), case.world.deployed.get(target.revision)
    if candidate.state is RevisionState.REFUSED:
        return refusal(candidate, live, case.serve.spec.replicas)
    gate = case.world.gates.get(gate_of(case.serve, candidate))
    if gate is not None:
        candidate = candidate.model_copy(update=gate.numbers)
    found = None if deployed is None else trouble(deployed, budget(case.serve.spec, target.model).start, case.now)
    step = _begun(case, target, candidate, live, found)
    if canary.is_asked(case, target, step):
        if candidate.state is RevisionState.CANARY:
            return canary.next_share(case, target, step, found)
        step = replace(step, candidate_replicas=canary.first_pods(case))
    wanted = step.pods
    if deployed is None or deployed.replicas != wanted:
        return replace(step, message=_and(step, f"starting revision {target.revision} of {target.model.uri}"))
    if gate is not None and gate.verdict is Verdict.FAILED:
        return refusal(refused(candidate, *failure_of(gate)), live, step.replicas)
    if found is not None and found.bad:
        return refusal(refused(candidate, found.reason, found.message), live, step.replicas)
    if not deployed.current or deployed.available < wanted:
        return _loads(step, deployed, found)
    if target.pinned_by is not None:
        return window.promoted(case, candidate, wanted)
    return _judged(case, target, step, gate)


def _begun(case: Case, target: Target, candidate: Revision, live: Revision | None, found: Trouble | None) -> Rollout:
    """The step so far: where it loads."""
    step = Rollout(Standing.WORKING, OperatorReason.Loading, "", live, candidate, case.serve.spec.replicas)
    if live is None:
        return step
    choice = strategy.choose(case, target, candidate, live, found)
    told = candidate.model_copy(update={"strategy": choice.strategy, "strategy_message": choice.text})
    return replace(step, candidate=told, is_live_stopped=choice.strategy is Strategy.RECREATE)


def _and(step: Rollout, text: str) -> str:
    """A message with what the strategy means for those who ask."""
    told = step.candidate and step.candidate.strategy_message
    return f"{text}; {told}" if told else text


def _loads(step: Rollout, deployed: Deployed, found: Trouble | None) -> Rollout:
    text = f"revision {deployed.revision} loads: {deployed.available} of {step.pods} pods are available"
    step = replace(step, message=_and(step, text), requeue_after=PATIENCE_SECONDS)  # patience ends without an event
    if found is None:
        return step
    standing = Standing.STALLED if found.stuck else Standing.WORKING
    return replace(step, standing=standing, reason=found.reason, message=_and(step, f"{text}; {found.message}"))


def _judged(case: Case, target: Target, step: Rollout, gate: Gate | None) -> Rollout:
    """All its pods are available: the gate has the word."""
    candidate = step.candidate
    assert candidate is not None
    if gate is not None and gate.verdict is Verdict.PASSED and _waits_for_a_person(case, step, candidate):
        passed = candidate.model_copy(update={"state": RevisionState.PASSED})
        command = canary.command(case, candidate, 1 if canary.is_asked(case, target, step) else None)
        text = f"revision {candidate.name} has passed its gate and waits to be promoted: {command}"
        return replace(step, reason=OperatorReason.AwaitingPromotion, message=text, candidate=passed)
    if gate is not None and gate.verdict is Verdict.PASSED:
        if canary.is_asked(case, target, step):
            return canary.next_share(case, target, step, None)
        return window.promoted(case, candidate, step.replicas)
    gating = candidate.model_copy(update={"state": RevisionState.GATING})
    if gate is not None and gate.verdict is Verdict.UNKNOWN:
        return ask_again(replace(step, candidate=gating), gating, gate, case.now)
    text = f"revision {candidate.name} is asked the prompts of spec.rollout.gate"
    return replace(step, reason=OperatorReason.Gating, message=text, candidate=gating, ask=gate is None)


def _waits_for_a_person(case: Case, step: Rollout, candidate: Revision) -> bool:
    """The first revision replaces none: nobody is asked."""
    if step.live is None or case.serve.spec.rollout.promotion is not PromotionPolicy.MANUAL:
        return False
    return canary.let_through(case, candidate) < 1


def _known(case: Case, target: Target) -> Revision:
    """The candidate as it was, if it is still the one that is asked for; otherwise a new one, or one that was left before."""
    before, told = case.serve.status.candidate, history.of(case.world.history, target.revision)
    if before and before.name == target.revision and before.trial == target.trial:
        return before
    new = Revision(
        name=target.revision,
        state=RevisionState.LOADING,
        model_uri=target.model.uri,
        model_digest=target.model.digest,
        created_at=stamp(case.now),
        trial=target.trial,
        paced=case.paced or None,
    )
    left = told.rolled_back if told is not None else None
    if left is None or left.trial != target.trial:
        return new
    return refused(new, left.reason, left.message).model_copy(update={"rolled_back_at": left.at})
