"""A judge that compares a new revision's answers with the live one's: what is wanted of it, and what it said. Pure.

pair ─┬─ A: new, B: live ──► judge ─┐
      └─ A: live, B: new ──► judge ─┴─► 1 better, 0.5 as good, or another verdict once swapped, 0 worse ──► win rate
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from finetune_trainer.contract.fields import Report, Strict

Z = 1.96  # of a normal distribution: 95 % lie within so many standard deviations


class Judging(Strict):
    base_url: str = Field(min_length=1, max_length=512, pattern=r"^https?://.+")
    """URL of an OpenAI API, up to and with /v1. It is sent test rows, their references, and both answers."""
    model: str = Field(min_length=1, max_length=256)
    """Name of the judge's model there."""
    max_calls: int = Field(100, ge=2, le=2000)
    """Requests to the judge at most, failed ones among them; a pair of answers takes two."""
    max_tokens: int = Field(512, ge=1, le=16384)
    """Longest verdict in tokens, with what a model thinks before it."""
    min_pairs: int = Field(10, ge=1, le=1000)
    """Pairs that must have been judged. Fewer are no verdict: the gate is asked again, and the live revision goes on."""
    min_win_rate: float = Field(0.5, ge=0, le=1)
    """The new revision is refused where its win rate lies below this for certain: the whole of its 95 % interval."""


class Judged(Report):
    """What a judge said of two revisions."""

    against: str
    """The revision that was live."""
    model: str
    """The judge's."""
    pairs: int
    """Pairs of answers that it judged in both orders."""
    wins: int
    """Pairs whose answer of the new revision is better in both orders, or better in one and as good in the other."""
    losses: int
    win_rate: float
    """Share of the pairs that were won, a tie as half."""
    low: float
    """The lower end of its 95 % interval."""
    high: float
    calls: int
    """Requests that were made."""
    tokens: int
    """Tokens that the judge counted, of questions and verdicts."""


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` (Wilson 1927). Ties as halves vary less than that, so it is a little wide."""
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def told(points: Sequence[float], against: str, model: str, calls: int, tokens: int) -> Judged:
    """The numbers of all pairs."""
    rate = sum(points) / len(points)
    low, high = interval(rate, len(points))
    return Judged(
        against=against,
        model=model,
        pairs=len(points),
        wins=sum(p > 0.5 for p in points),
        losses=sum(p < 0.5 for p in points),
        win_rate=round(rate, 3),
        low=round(low, 3),
        high=round(high, 3),
        calls=calls,
        tokens=tokens,
    )


def mistake(found: Judged, wanted: Judging) -> str | None:
    """What is wrong with the new revision; None where nothing is."""
    if found.high >= wanted.min_win_rate:
        return None
    return (
        f"{found.model} finds its answers worse than those of revision {found.against}: win rate {found.win_rate:g}"
        f" ({found.low:g} to {found.high:g}) over {found.pairs} pairs; spec.rollout.gate.judge.minWinRate asks for"
        f" {wanted.min_win_rate:g}"
    )
