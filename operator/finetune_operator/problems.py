"""Status for what the policies never see: a spec that can't be read, a child that the API server refuses."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_operator.meta import Object, stamp

INVALID_SPEC = "InvalidSpec"
REFUSED = "Refused"


def stalled(body: Object, message: str, now: datetime) -> dict[str, Any]:
    """The object's status as it was, but Stalled: nothing will happen until the spec changes."""
    return _with(body, body.get("status", {}), now, {"Ready": "False", "Stalled": "True"}, INVALID_SPEC, message)


def refused(body: Object, status: dict[str, Any], message: str, now: datetime) -> dict[str, Any]:
    """The status that was decided on, but waiting for the API server to take what the decision needs."""
    return _with(body, status, now, {"Ready": "False", "Reconciling": "True"}, REFUSED, message)


def _with(
    body: Object, status: dict[str, Any], now: datetime, want: dict[str, str], reason: str, message: str
) -> dict[str, Any]:
    generation = body["metadata"].get("generation", 0)
    before = {c["type"]: c for c in body.get("status", {}).get("conditions", [])}
    kept = [c for c in status.get("conditions", []) if c["type"] not in ("Ready", "Reconciling", "Stalled")]
    conditions = [
        {
            "type": kind,
            "status": value,
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": _since(before.get(kind), value, now),
        }
        for kind, value in want.items()
    ]
    return {**status, "conditions": [*conditions, *kept], "observedGeneration": generation}


def _since(before: dict[str, Any] | None, value: str, now: datetime) -> str:
    if before is not None and before["status"] == value and before.get("lastTransitionTime"):
        return str(before["lastTransitionTime"])
    return stamp(now)
