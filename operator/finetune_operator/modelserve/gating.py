"""The gate's Jobs of a revision: their names, and what follows from one that came to no verdict. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from finetune_operator.api.modelserve import ModelServe, Revision
from finetune_operator.decision import pause_after
from finetune_operator.meta import seconds_since
from finetune_operator.modelserve.case import Rollout, Standing
from finetune_operator.modelserve.observed import Gate
from finetune_operator.names import object_name
from finetune_trainer.contract.reasons.operator import OperatorReason

GATES_LOST_UNSEEN = 2  # after which somebody should look


def gate_job(serve: ModelServe, revision: str, trial: str, again: int = 0) -> str:
    """Name of the Job that asks one revision one gate's prompts, for the first time or once more."""
    return object_name(serve.metadata.name, revision, "gate", trial, *([str(again)] if again else []))


def gate_of(serve: ModelServe, revision: Revision) -> str:
    """Name of the gate's Job that counts for a revision."""
    return gate_job(serve, revision.name, revision.trial or "", revision.gates_lost or 0)


def failure_of(gate: Gate) -> tuple[str, str]:
    """Reason and message of a gate that was not passed."""
    if gate.failure is not None:
        return gate.failure.reason, gate.failure.message
    return OperatorReason.GateNotAsked, f"the gate's Job {gate.job} came to no verdict, {gate.reason}: {gate.message}"


def pause_left(gate: Gate, lost: int, now: datetime) -> float:
    """Seconds until a gate may be asked again that came to no verdict, after so many others that came to none."""
    return pause_after(lost + 1) - (seconds_since(gate.ended_at, now) if gate.ended_at else 0)


def ask_again(step: Rollout, candidate: Revision, gate: Gate, now: datetime) -> Rollout:
    """The gate came to no verdict: it is asked once more, after a pause."""
    lost = candidate.gates_lost or 0
    reason, why = failure_of(gate)
    left = pause_left(gate, lost, now)
    text = f"revision {candidate.name} could not be asked the prompts of spec.rollout.gate, and will be asked again: {why}"
    standing = Standing.STALLED if lost >= GATES_LOST_UNSEEN else Standing.WORKING
    step = replace(step, standing=standing, reason=reason, message=text)
    if left > 0:
        return replace(step, requeue_after=left)
    return replace(step, candidate=candidate.model_copy(update={"gates_lost": lost + 1}), ask=True)
