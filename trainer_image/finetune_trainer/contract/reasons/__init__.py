"""Each reason of the API, once: its name, what it means and what to do, and the exit code of a pod that ends with it.

    steps     what a pod ends with (StepFailed): status.lastFailure, conditions, a refused revision
    operator  what the operator says itself: conditions, events, and why an attempt failed whose pod can't tell
    remarks   what is unusual and goes on all the same: status.warnings, and Warning events

A member's name is the reason as users see it. Its text is a clause in lower case: it is the message where nobody can say
more, and docs/reasons.md is made of it (`make docs`). tests/house/test_reasons.py holds the code to these tables.
"""

from __future__ import annotations

from enum import StrEnum, auto


class Reason(StrEnum):
    """A word that programs may rely on. This class has no members of its own."""

    text: str

    def __new__(cls, name: str, text: str) -> Reason:
        member = str.__new__(cls, name)
        member._value_, member.text = name, text
        return member

    @staticmethod
    def _generate_next_value_(name: str, *_: object) -> str:
        return name


def means(text: str) -> tuple[auto, str]:
    """One row of a table; `auto` takes the row's name."""
    return auto(), text
