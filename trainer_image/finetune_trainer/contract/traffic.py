"""What engines count of the traffic that a revision takes, and what of that is too bad within the rollback window. Pure."""

from __future__ import annotations

from pydantic import Field

from finetune_trainer.contract.fields import Report, Strict
from finetune_trainer.contract.reasons.steps import StepReason


class Series(Strict):
    """One counter of a Prometheus text, or several by their labels."""

    name: str
    labels: dict[str, str] = Field(default_factory=dict)  # a label's value must match this expression as a whole


class Counters(Strict):
    """How an engine calls them; None where it does not count that."""

    requests: Series | None = None
    errors: Series | None = None  # of the requests: those that the engine failed at, 5xx
    tokens: Series | None = None  # that were generated after an answer's first
    token_seconds: Series | None = None  # that they took

    @property
    def has_errors(self) -> bool:
        """Whether a share of errors can be told."""
        return self.requests is not None and self.errors is not None


class Bounds(Strict):
    """What is borne; None where a signal is not watched."""

    max_error_rate: float | None = None
    min_requests: int = 20
    max_slowdown: float | None = None
    min_tokens: int = 500


class Watch(Strict):
    """Whom a watch reads, and for how long."""

    host: str  # a name that stands for the addresses of all ready pods of the revision
    before: str | None = None  # of the revision before, which a slowdown is measured against
    port: int
    seconds: int
    counters: Counters
    bounds: Bounds


class Traffic(Report):
    """What the engines of a revision counted in the last five minutes of its rollback window, or in the shorter window."""

    requests: int = 0
    errors: int = 0
    """Requests that ended with 5xx."""
    tokens: int = 0
    """Tokens that were generated."""
    token_milliseconds: float | None = None
    """Mean time between two tokens of an answer."""
    token_milliseconds_before: float | None = None
    """The same of the revision before, since its pods started."""


class Counted(Report):
    """Readings of the counters, or how far they grew."""

    requests: float = 0
    errors: float = 0
    tokens: float = 0
    token_seconds: float = 0

    def since(self, before: Counted) -> Counted:
        """How far each counter grew; one that is smaller now began anew."""
        pairs = ((name, getattr(self, name), getattr(before, name)) for name in Counted.model_fields)
        return Counted(**{name: now - then if now >= then else now for name, now, then in pairs})

    def __add__(self, other: Counted) -> Counted:
        return Counted(**{name: getattr(self, name) + getattr(other, name) for name in Counted.model_fields})

    def milliseconds(self, least: int) -> float | None:
        """Mean time between two tokens; None where they are fewer than `least`."""
        return round(1000 * self.token_seconds / self.tokens, 2) if self.tokens >= max(least, 1) else None


def told(grown: Counted, before: Counted, bounds: Bounds) -> Traffic:
    """The numbers of a revision, and of the one before."""
    return Traffic(
        requests=round(grown.requests),
        errors=round(grown.errors),
        tokens=round(grown.tokens),
        token_milliseconds=grown.milliseconds(bounds.min_tokens),
        token_milliseconds_before=before.milliseconds(bounds.min_tokens),
    )


def fault(found: Traffic, bounds: Bounds) -> tuple[StepReason, str] | None:
    """What is too bad, and its reason. Too little traffic is no verdict."""
    most, slowest = bounds.max_error_rate, bounds.max_slowdown
    if most is not None and found.requests >= bounds.min_requests and found.errors > most * found.requests:
        text = f"{found.errors} of {found.requests} requests ended with an error of the engine"
        return StepReason.TooManyErrors, f"{text}; spec.rollout.rollbackOn.maxErrorRate bears {most:g}"
    now, then = found.token_milliseconds, found.token_milliseconds_before
    if slowest is not None and now is not None and then is not None and now > slowest * then:
        text = f"a token takes {now:g} ms, the mean of {found.tokens}, and took {then:g} ms in the revision before"
        return StepReason.SlowedDown, f"{text}; spec.rollout.rollbackOn.maxSlowdown bears {slowest:g} times"
    return None
