"""Which revisions took traffic, when, and why one was left again. Pure.

It is an annotation of the stable Service, so that one write moves the traffic and tells of it. A status may be lost, and a
spec moves on; the Service tells all the same what can be gone back to, and what is not to be tried again.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from finetune_operator.api.modelserve import Revision
from finetune_trainer.contract.fields import Report


class RolledBack(Report):
    """Why traffic was taken from a revision again, and with which trial of it."""

    trial: str
    reason: str
    message: str
    at: str


class Promotion(Report):
    """A revision that took traffic."""

    revision: str
    promoted_at: AwareDatetime
    rolled_back: RolledBack | None = None


History = tuple[Promotion, ...]  # the live revision first, then those before it
_HISTORY = TypeAdapter(History)


def read(text: str) -> History:
    """The annotation's value. What somebody wrote over is as if it were not there."""
    try:
        return _HISTORY.validate_json(text or "[]")
    except ValidationError:
        return ()


def rendered(history: History) -> str:
    """The annotation's value."""
    return _HISTORY.dump_json(history, by_alias=True, exclude_none=True).decode()


def of(history: Sequence[Promotion], revision: str) -> Promotion | None:
    """What is told of a revision."""
    return next((p for p in history if p.revision == revision), None)


def before(history: Sequence[Promotion], revision: str) -> str | None:
    """The revision that took traffic last before this one and was not left for a fault of its own."""
    return next((p.revision for p in history if p.revision != revision and p.rolled_back is None), None)


def after(history: Sequence[Promotion], live: Revision, candidate: Revision | None, limit: int) -> History:
    """The history while `live` serves, and at most `limit` revisions before it."""
    assert live.promoted_at is not None
    now = Promotion.model_validate({"revision": live.name, "promoted_at": live.promoted_at})
    rest = [_marked(p, candidate) for p in (*_tried(history, candidate), *history) if p.revision != live.name]
    return (now, *rest[:limit])


def _tried(history: Sequence[Promotion], candidate: Revision | None) -> History:
    """A candidate that took but a share of the traffic and was left again: it is not to be tried again either."""
    if candidate is None or candidate.rolled_back_at is None or of(history, candidate.name) is not None:
        return ()
    since = candidate.promoted_at or candidate.rolled_back_at
    return (Promotion.model_validate({"revision": candidate.name, "promoted_at": since}),)


def _marked(promotion: Promotion, candidate: Revision | None) -> Promotion:
    if candidate is None or candidate.name != promotion.revision or candidate.rolled_back_at is None:
        return promotion
    note = RolledBack(
        trial=candidate.trial or "",
        reason=candidate.reason or "",
        message=candidate.message or "",
        at=candidate.rolled_back_at,
    )
    return promotion.model_copy(update={"rolled_back": note})
