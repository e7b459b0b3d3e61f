"""Where a verdict on a revision turns: the numbers of its traffic, its answers and its judge, at their very bounds."""

from __future__ import annotations

import pytest

from finetune_trainer.contract.held_out import HeldOut, Live
from finetune_trainer.contract.judging import Judged, Judging, interval, mistake, told
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.traffic import Bounds, Counted, Counters, Series, Traffic, fault


@pytest.mark.parametrize(
    ("tokens", "least", "milliseconds"), [(499, 500, None), (500, 500, 24.69), (0, 0, None), (1, 0, 12345.0)]
)
def test_a_mean_needs_as_many_tokens_as_are_asked_for(tokens: int, least: int, milliseconds: float | None) -> None:
    assert Counted(tokens=tokens, token_seconds=12.345).milliseconds(least) == milliseconds


@pytest.mark.parametrize(
    ("errors", "milliseconds", "reason"),
    [(5, 20, None), (6, 20, StepReason.TooManyErrors), (5, 40, None), (5, 40.01, StepReason.SlowedDown)],
)
def test_what_is_borne_is_borne_to_its_end(errors: int, milliseconds: float, reason: StepReason | None) -> None:
    found = Traffic(requests=100, errors=errors, tokens=900, token_milliseconds=milliseconds, token_milliseconds_before=20)
    told = fault(found, Bounds(max_error_rate=0.05, max_slowdown=2))
    assert (told and told[0]) == reason


@pytest.mark.parametrize("counted", [(), ("requests",), ("errors",), ("requests", "errors")])
def test_a_share_of_errors_takes_both_numbers(counted: tuple[str, ...]) -> None:
    counters = Counters(**{name: Series(name=name) for name in counted})
    assert counters.has_errors is (len(counted) == 2)


def test_an_interval_ends_where_shares_do_however_it_is_rounded() -> None:
    ends = [interval(share, count) for share in (0.0, 1.0) for count in range(1, 200)]
    assert all(0.0 <= low <= high <= 1.0 for low, high in ends)


@pytest.mark.parametrize(("high", "is_worse"), [(0.499, True), (0.5, False)])
def test_a_judge_refuses_what_is_worse_for_certain_alone(high: float, is_worse: bool) -> None:
    judged = Judged(
        against="a1", model="judge", pairs=40, wins=15, losses=25, win_rate=0.375, low=0.2, high=high, calls=80, tokens=9
    )
    assert (mistake(judged, Judging(base_url="https://judge/v1", model="judge")) is not None) is is_worse


JUDGE = Judging(base_url="https://judge/v1", model="judge", max_calls=61)


@pytest.mark.parametrize(
    ("held_out", "judge", "count"),
    [(None, None, 0), (HeldOut(rows=80), None, 80), (None, JUDGE, 30), (HeldOut(rows=20), JUDGE, 30)],
)
def test_as_many_rows_are_asked_as_the_rows_or_the_pairs_of_the_judge_take(
    held_out: HeldOut | None, judge: Judging | None, count: int
) -> None:
    assert Live(revision="a1", url="http://live", rows="pvc://x/y", held_out=held_out, judge=judge).count == count


def test_a_judges_numbers_are_told_to_a_thousandth() -> None:
    found = told([1.0, 0.5, 0.0, 0.5, 1.0, 1.0, 0.0], "a1", "judge", 14, 99)
    assert (found.pairs, found.wins, found.losses, found.win_rate) == (7, 3, 2, 0.571)
    assert (found.low, found.high) == (0.25, 0.842)
