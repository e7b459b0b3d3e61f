"""Status for what the policies never see: a spec that can't be read, a refused child, a pass that our own fault ended."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_operator.meta import Object, stamp
from finetune_operator.names import ANNOTATION_HOLD, CONTROLLER
from finetune_trainer.contract.reasons import Reason
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reasons.steps import StepReason

HELD = "Held"  # the condition's type


def stalled(body: Object, message: str, now: datetime, reason: Reason = StepReason.InvalidSpec) -> dict[str, Any]:
    """The object's status as it was, but Stalled: nothing will happen until the spec changes."""
    return _with(body, body.get("status", {}), now, {"Ready": "False", "Stalled": "True"}, reason, message)


def refused(body: Object, status: dict[str, Any], message: str, now: datetime) -> dict[str, Any]:
    """The status that was decided on, but waiting for the API server to take what the decision needs."""
    return _with(body, status, now, {"Ready": "False", "Reconciling": "True"}, OperatorReason.Refused, message)


def is_held(body: Object) -> bool:
    """Whether somebody wants nothing to be done for the object."""
    return bool((body["metadata"].get("annotations") or {}).get(ANNOTATION_HOLD) == "true")


def held(body: Object, now: datetime) -> dict[str, Any]:
    """The status as it was, and that nothing follows from it while somebody holds the object."""
    status = body.get("status", {})
    others = [c for c in status.get("conditions", []) if c["type"] != HELD]
    message = f"the annotation {ANNOTATION_HOLD} is true: nothing is created, changed or deleted until it is removed"
    return {**status, "conditions": [*others, _condition(HELD, "True", (OperatorReason.Held, message), body, now)]}


def is_managed_elsewhere(body: Object) -> bool:
    """Whether another controller has the object to itself."""
    return bool((body.get("spec") or {}).get("managedBy", CONTROLLER) != CONTROLLER)


def managed_elsewhere(body: Object, now: datetime) -> dict[str, Any]:
    """What is told of an object of another controller, as long as that has told nothing: the status is its own."""
    status = body.get("status", {})
    reasons = [c.get("reason") for c in status.get("conditions", []) if c["type"] == "Ready"]
    if status.get("conditions") and reasons != [OperatorReason.ManagedElsewhere]:
        return dict(status)
    message = (
        f"spec.managedBy is {body['spec']['managedBy']}: that controller runs the job and tells of it, and this one does not"
    )
    told = _condition("Ready", "Unknown", (OperatorReason.ManagedElsewhere, message), body, now)
    return {**status, "conditions": [told], "observedGeneration": told["observedGeneration"]}


def _with(
    body: Object, status: dict[str, Any], now: datetime, want: dict[str, str], reason: str, message: str
) -> dict[str, Any]:
    generation = body["metadata"].get("generation", 0)
    kept = [c for c in status.get("conditions", []) if c["type"] not in ("Ready", "Reconciling", "Stalled")]
    conditions = [_condition(kind, value, (reason, message), body, now) for kind, value in want.items()]
    return {**status, "conditions": [*conditions, *kept], "observedGeneration": generation}


def _condition(kind: str, value: str, why: tuple[str, str], body: Object, now: datetime) -> dict[str, Any]:
    """Its time moves only when its truth does."""
    before: dict[str, Any] = next((c for c in body.get("status", {}).get("conditions", []) if c["type"] == kind), {})
    since = before.get("lastTransitionTime") if before.get("status") == value else None
    return {
        "type": kind,
        "status": value,
        "reason": str(why[0]),
        "message": why[1],
        "observedGeneration": body["metadata"].get("generation", 0),
        "lastTransitionTime": since or stamp(now),
    }
