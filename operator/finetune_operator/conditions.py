"""Conditions as the API's conventions want them: the time moves only when the truth does, and a message stays short."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple

from finetune_operator.meta import Condition, stamp

LONGEST_MESSAGE = 1000  # characters; a scheduler's or registry's text can be much longer

Truth = Literal["True", "False", "Unknown"]


class Told(NamedTuple):
    """A condition as a policy tells it."""

    type: str
    status: Truth
    reason: str
    message: str


def conditions(told: Iterable[Told], before: Iterable[Condition], generation: int, now: datetime) -> list[Condition]:
    """What was told, as conditions of this generation; `before` are the object's conditions so far."""
    since = {(c.type, c.status): c.last_transition_time for c in before}
    return [
        Condition(
            type=one.type,
            status=one.status,
            reason=one.reason,
            message=one.message[:LONGEST_MESSAGE],
            observed_generation=generation,
            last_transition_time=since.get((one.type, one.status)) or stamp(now),
        )
        for one in told
    ]
