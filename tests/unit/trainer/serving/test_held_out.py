"""A new revision and the live one, both real HTTP servers, asked the same test rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.trainer.serving.engine import ENTRY, Engine, asked_row, started

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.held_out import AnswerScore, HeldOut, HeldOutScores, Live
from finetune_trainer.contract.reports import Termination
from finetune_trainer.serving.held_out import f1

FACTS = {f"The mayor of town {n}?": f"Dr. Anna Weber{n}" for n in range(10)}
WANTED = HeldOut(rows=10, min_rows=5, metric=AnswerScore.EXACT_MATCH, max_drop=0.1)


@pytest.fixture
def live() -> Iterator[Engine]:
    """The live revision, which serves under a name of its own and knows every fact."""
    with started() as server:
        server.serves = "facts-of-old"
        server.answers = dict(FACTS)
        yield server


@pytest.fixture
def compared(gate: Any, entry: Any, live: Engine, tmp_path: Path) -> Any:
    """Ask both; returns the exit status, the failure, and what was reported."""
    entry([asked_row(1, *next(iter(FACTS.items())))], references=FACTS)

    def run(wanted: HeldOut = WANTED, url: str = "", **fields: Any) -> tuple[int, Any, HeldOutScores | None]:
        told = Live(revision="a1", url=url or live.url, rows=ENTRY, held_out=wanted.model_copy(update=fields))
        status, failure = gate([{"prompt": "Hi"}], "--live", told.model_dump_json(by_alias=True))
        return status, failure, Termination.model_validate_json((tmp_path / "termination").read_text()).held_out

    return run


def knows(engine: Engine, count: int) -> None:
    engine.answers = {prompt: answer if n < count else "Nobody" for n, (prompt, answer) in enumerate(FACTS.items())}


def test_a_revision_that_answers_as_well_passes_with_both_numbers(compared: Any, engine: Engine) -> None:
    knows(engine, 9)
    status, _, told = compared()
    assert (status, told) == (
        0,
        HeldOutScores(against="a1", metric="exactMatch", rows=10, score=0.9, live_score=1.0),
    )


def test_a_revision_that_is_worse_by_more_than_the_margin_is_refused(
    compared: Any, engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    knows(engine, 8)
    status, failure, told = compared()
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "WorseThanLive")
    assert failure.message == (
        "exactMatch is 0.8 on 10 test rows that revision a1 answers with 1; spec.rollout.gate.heldOut.maxDrop allows 0.1 less"
    )
    assert told.score == 0.8
    out = "".join(capfd.readouterr())
    assert not [word for pair in FACTS.items() for word in pair if word in out], "no row is told"


def test_a_revision_that_is_better_passes(compared: Any, engine: Engine, live: Engine) -> None:
    knows(engine, 10)
    knows(live, 2)
    assert compared()[0] == 0


def test_rows_that_the_live_one_cannot_answer_are_left_out(compared: Any, engine: Engine, live: Engine) -> None:
    knows(engine, 10)
    live.answers |= dict.fromkeys(list(FACTS)[:4], 500)
    status, _, told = compared()
    assert (status, told.rows, told.score) == (0, 6, 1.0)


def test_too_few_rows_are_no_verdict(compared: Any, engine: Engine, live: Engine) -> None:
    knows(engine, 0)
    live.answers |= dict.fromkeys(list(FACTS)[:6], 500)
    status, failure, told = compared()
    assert (status, failure.reason, told) == (ExitCode.BAD_DATA, "TooFewRows", None)
    assert "4 test rows were answered by this revision and by a1" in failure.message


def test_rows_beyond_a_context_are_left_out_of_both(compared: Any, engine: Engine, live: Engine) -> None:
    knows(engine, 10)
    live.told = {"max_model_len": 64 + 19}  # the longest answer, and less than a prompt
    assert compared()[1].reason == "TooFewRows"
    assert not [r for r in live.requests if isinstance(r.get("prompt"), list)]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", None], ids=["away", "busy"])
def test_a_live_revision_that_does_not_answer_is_no_fault_of_the_new_one(
    compared: Any, engine: Engine, live: Engine, url: str | None
) -> None:
    knows(engine, 0)
    live.answers = dict.fromkeys(FACTS, 503)
    status, failure, _ = compared(url=url or live.url)
    assert (status, failure.reason) == (ExitCode.SOURCE_UNAVAILABLE, "EngineUnavailable")


def test_what_the_new_revision_cannot_answer_is_its_fault(compared: Any, engine: Engine) -> None:
    knows(engine, 10)
    engine.answers |= {"The mayor of town 3?": 500}
    status, failure, _ = compared()
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "GateFailed")
    assert failure.message.startswith("test row 4: /v1/completions answered HTTP 500")
    assert "mayor" not in failure.message


def test_no_more_rows_are_asked_than_wanted(compared: Any, engine: Engine) -> None:
    knows(engine, 5)
    assert compared(rows=5)[2].rows == 5


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("Port Amber", "port  amber.", 1.0),
        ("Port Amber", "It is Port Amber", 2 * 2 / 6),
        ("to be or not to be", "to be", 2 * 2 / 8),
        ("yes", "no", 0.0),
        ("…", "!", 1.0),
        ("yes", "", 0.0),
    ],
)
def test_f1(reference: str, answer: str, score: float) -> None:
    assert f1(reference, answer) == pytest.approx(score)
