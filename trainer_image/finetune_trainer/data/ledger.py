"""What became of rows on the way from their files into training: each one that is left out or changed is noted by its cause."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from finetune_trainer.contract.reports import RowCount
from finetune_trainer.failures import writable

SHOWN = 60  # characters of a row's place in a report: a termination message holds 4096 bytes in all


class Cause(StrEnum):
    """Why a row was left out, or how it was changed. The values are part of the API."""

    TOO_LONG = "TooLong"
    NO_QUESTION = "NoQuestion"
    NO_ANSWER = "NoAnswer"
    NOT_LEARNED = "NotLearned"
    SAME_ANSWERS = "SameAnswers"
    OTHER_COLUMNS = "OtherColumns"
    IN_TEST_ROWS = "InTestRows"
    IN_VALIDATION_ROWS = "InValidationRows"
    UNDESIRABLE_TEST_ROW = "UndesirableTestRow"
    REPEATED_HEADER = "RepeatedHeader"

    TURNS_AFTER_ANSWER = "TurnsAfterAnswer"
    OPENING_ANSWER = "OpeningAnswer"
    ANSWER_APART = "AnswerApart"
    END_TOKEN = "EndToken"
    CONTROL_TOKEN = "ControlToken"
    OTHER_ENCODING = "OtherEncoding"


# A row with one of these causes is not in the training, validation or test rows; each says why, of one row.
DROPPED = {
    Cause.TOO_LONG: "has more tokens than spec.training.maxLength",
    Cause.NO_QUESTION: "has an empty question, or none",
    Cause.NO_ANSWER: "has an empty answer, or none",
    Cause.NOT_LEARNED: "has no answer that is to be learned (weight 0 or train false in all)",
    Cause.SAME_ANSWERS: "has the same answer as chosen and as rejected",
    Cause.OTHER_COLUMNS: "lacks a column that its format needs",
    Cause.IN_TEST_ROWS: "has prompt and answer of a test row",
    Cause.IN_VALIDATION_ROWS: "has prompt and answer of a validation row",
    Cause.UNDESIRABLE_TEST_ROW: "is a test row whose answer is to be avoided, by which nobody is scored",
    Cause.REPEATED_HEADER: "is the header of its file once more",
}
UNLIMITED = (
    Cause.UNDESIRABLE_TEST_ROW,
    Cause.REPEATED_HEADER,
)  # nothing is lost with these: maxDroppedFraction is not for them


@dataclass(frozen=True)
class Note:
    """What befell one row; `place` reads "train.jsonl line 17". `columns` are those of a row of another shape."""

    cause: Cause
    place: str
    columns: tuple[str, ...] = ()


def counted(notes: Iterable[Note], *, dropped: bool) -> tuple[RowCount, ...]:
    """Rows by cause with the place of the first one: of rows that were left out, or of those that were changed."""
    found: dict[Cause, list[str]] = {}
    for note in notes:
        if (note.cause in DROPPED) is dropped:
            found.setdefault(note.cause, []).append(note.place)
    return tuple(RowCount(cause=cause, rows=len(places), example=_shown(places[0])) for cause, places in found.items())


def told(counts: Iterable[RowCount]) -> str:
    """ "20 NoAnswer (a.jsonl line 3 has an empty answer, or none), 1 TooLong (…)"."""
    return ", ".join(f"{c.rows} {c.cause} ({c.example} {DROPPED[Cause(c.cause)]})" for c in counts)


def _shown(place: str) -> str:
    """The end of a long place, as the line stands there."""
    place = writable(place)
    return place if len(place) <= SHOWN else f"…{place[1 - SHOWN :]}"
