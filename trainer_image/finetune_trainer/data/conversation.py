"""A conversation that can be learned from: it ends with an answer, and no question or answer in it is empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune_trainer.data.ledger import Cause
from finetune_trainer.data.turns import Turn


@dataclass(frozen=True)
class Example:
    """A conversation that ends with an answer of the assistant's that is learned, or (turns empty) plain text.

    `rejected` is the answer that should have been worse than the last turn's, in rows of preferences. `desirable` says
    whether the last turn is to be learned or to be avoided, in rows of unpaired ones.

    `plain` says that a model without a chat template may see prompt and answer as they are, one after the other.
    `changed` says in which ways it is not what the row holds.
    """

    place: str
    turns: tuple[Turn, ...]
    text: str = ""
    plain: bool = False
    rejected: str | None = None
    desirable: bool | None = None
    changed: tuple[Cause, ...] = ()


def answered(place: str, prompt: str, answer: str, keep: bool = False) -> Example | Cause:
    """One question and its answer. `keep`: the prompt's own white space parts it from the answer in plain text."""
    if not prompt.strip():
        return Cause.NO_QUESTION
    if not answer.strip():
        return Cause.NO_ANSWER
    text = prompt if keep else prompt.strip() + "\n\n"
    return Example(place, (Turn("user", prompt), Turn("assistant", answer)), text=text, plain=True)


def conversation(place: str, turns: Sequence[Turn]) -> Example | Cause:
    """The turns up to the last answer that is learned, or why nothing can be learned from them.

    What the assistant says before anybody asked is context: a served model never writes it.
    """
    asked = next((number for number, turn in enumerate(turns) if turn.role == "user"), len(turns))
    opening = any(turn.role == "assistant" and turn.learned for turn in turns[:asked])
    meant = [replace(t, learned=t.learned and n > asked) if t.role == "assistant" else t for n, t in enumerate(turns)]
    end = max((n for n, turn in enumerate(meant) if turn.role == "assistant" and turn.learned), default=-1) + 1
    if not end:
        return _without_answer(turns, asked)
    kept = meant[:end]
    if any(turn.role == "user" and not turn.content.strip() for turn in kept):
        return Cause.NO_QUESTION
    if any(turn.role == "assistant" and turn.learned and not turn.content.strip() for turn in kept):
        return Cause.NO_ANSWER
    changed = {Cause.TURNS_AFTER_ANSWER: end < len(turns), Cause.OPENING_ANSWER: opening}
    return Example(place, tuple(kept), changed=tuple(cause for cause, is_so in changed.items() if is_so))


def _without_answer(turns: Sequence[Turn], asked: int) -> Cause:
    if asked == len(turns):
        return Cause.NO_QUESTION
    return Cause.NOT_LEARNED if any(turn.role == "assistant" for turn in turns[asked:]) else Cause.NO_ANSWER
