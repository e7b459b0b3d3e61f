"""Test rows that a new revision and the live one are both asked: what is wanted of that, and what became of it. Pure."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from finetune_trainer.contract.fields import Report, Strict
from finetune_trainer.contract.judging import Judging

FILE = "rows.jsonl"  # of an evaluation: every test row with its reference


class AnswerScore(StrEnum):
    """How an answer is compared with its row's reference; both are shares, and higher is better."""

    EXACT_MATCH = "exactMatch"
    F1 = "f1"


class HeldOut(Strict):
    rows: int = Field(100, ge=1, le=1000)
    """Test rows of the new model's evaluation that both revisions are asked at most, greedily, maxTokens each."""
    min_rows: int = Field(20, ge=1, le=1000)
    """Rows that both must have answered. Fewer are no verdict: the gate is asked again, and the live revision goes on."""
    metric: AnswerScore = AnswerScore.F1
    """exactMatch: share of the answers that equal their reference, but for case, white space and a closing mark. f1: mean
    F-measure of the words that answer and reference share."""
    max_drop: float = Field(0.05, ge=0, le=1)
    """How far the new revision's score may lie below the live one's on the same rows."""


class HeldOutScores(Report):
    """What two revisions scored on the same test rows."""

    against: str
    """The revision that was live."""
    metric: str
    rows: int
    """Rows that both answered."""
    score: float
    """The revision's own score."""
    live_score: float
    """The score of the one that was live."""


class Live(Strict):
    """The live revision, as a gate asks it beside the new one."""

    revision: str
    url: str
    rows: str  # uri of the evaluation's entry
    held_out: HeldOut | None = None
    judge: Judging | None = None

    @property
    def count(self) -> int:
        """Test rows that both are asked at most."""
        return max(self.held_out.rows if self.held_out else 0, self.judge.max_calls // 2 if self.judge else 0)
