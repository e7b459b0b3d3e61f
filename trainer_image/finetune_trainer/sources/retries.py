"""The one retry policy for all that is fetched: doubled waits, or as long as the server asks for by Retry-After."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

from finetune_trainer.failures import StepFailed

T = TypeVar("T")

ATTEMPTS = 5
FIRST_WAIT = 2.0  # seconds, doubled each time
LONGEST_WAIT = 60.0  # seconds; a server that asks for more by Retry-After is left to the operator's next attempt
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


def with_retries(
    action: Callable[[], T],
    meaning: Callable[[Exception], StepFailed | float | None],
    unavailable: Callable[[BaseException], StepFailed],
    sleep: Callable[[float], None] | None = None,
) -> T:
    """Run `action`, again after errors that pass, with doubled waits or as long as the server asks.

    `meaning` says of an error what it is: a failure, seconds to wait at least before another try, or None: not known.
    Raises the StepFailed that `meaning` returns; that of `unavailable` after the last try or when asked to wait too long.
    """
    wait = FIRST_WAIT
    for left in reversed(range(ATTEMPTS)):
        try:
            return action()
        except Exception as error:
            meant = meaning(error)
            if isinstance(meant, StepFailed):
                raise meant from error
            if meant is None:
                raise
            if left == 0 or meant > LONGEST_WAIT:
                raise unavailable(error) from error
            (sleep or time.sleep)(max(wait, meant))
            wait = min(2 * wait, LONGEST_WAIT)
    raise AssertionError("unreachable: the last try returns or raises")


def wait_asked_for(retry_after: str | None, now: Callable[[], float] = time.time) -> float:
    """Seconds of a Retry-After header, which is a number or a date; 0 for none and for what is neither."""
    if retry_after is None:
        return 0.0
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - now())
    except ValueError:
        return 0.0
