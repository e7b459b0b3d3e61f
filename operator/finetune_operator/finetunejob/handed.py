"""How a hand-over stands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum

from finetune_operator.meta import Object
from finetune_operator.names import short_hash


class Stand(Enum):
    WAITING = "Waiting"
    READY = "Ready"
    REFUSED = "Refused"
    SUPERSEDED = "Superseded"


@dataclass(frozen=True)
class Handover:
    """How the hand-over stands. `apply` is the ModelServe to write while it does not ask for our artifact yet."""

    stand: Stand
    message: str = ""
    apply: Object | None = None


def fingerprint(wanted: Object) -> str:
    """What status.serving.handedOver keeps of a hand-over, so that it is done once."""
    return short_hash(json.dumps(wanted["spec"], sort_keys=True), length=16)
