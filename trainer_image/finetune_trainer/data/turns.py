"""Turns of a conversation as rows hold them: role, content, and what else says how they are meant.

    {role | from | type, content | value | text | parts, weight | train | loss, reasoning_content | reasoning | thinking, name}

A key that would change what a turn says, or whether it is learned, is understood or refused; it is never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.data.json_text import NotJson, loads, quotable
from finetune_trainer.failures import StepFailed

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
    "developer": "system",
    "function": "tool",
    "prompter": "user",
    "ai": "assistant",
    "ipython": "tool",
}
ROLE, KIND, CONTENT, NAME = ("role", "from"), "type", ("content", "value", "text", "parts"), ("name",)
KINDS = ("message", "text")  # of turns that have a role as well
LEARNED = ("weight", "train", "loss")
REASONING = ("reasoning_content", "reasoning", "thinking")
# Keys that describe a turn and are no part of what it says.
DESCRIPTION = frozenset((
    "id", "uuid", "message_id", "parent_id", "conversation_id", "session_id", "user_id", "turn", "turn_id", "turn_identifier",
    "index", "idx", "position", "time", "date", "timestamp", "created_at", "create_time", "updated_at", "model", "language",
    "lang", "country", "state", "header", "hashed_ip", "redacted", "toxic", "source", "metadata", "tokens", "token_count",
    "num_tokens", "length", "score", "rating", "likes", "tool_call_id",
))  # fmt: skip
CALLED = "calls are not learned: write them into content as the model is to write them, or remove the row"
CALLS = frozenset(("function_call", "function_calls", "tool_call", "tool_calls"))  # also as a role, of a turn that is a call
INSTEAD = {
    **dict.fromkeys(CALLS, CALLED),
    **dict.fromkeys(
        ("tools", "functions"),
        "the model would not be told of them: write them into the system message, or remove the column",
    ),
    **dict.fromkeys(
        ("image", "images", "image_url", "video", "videos", "audio", "audios"),
        "only text is learned: remove the row, or the key where the text makes sense without it",
    ),
}
OTHERWISE = "what it says would be lost: write it into content, or remove the key"
PRINTED = re.compile(r"\}\s+\{|\barray\(")
NOTHING = ("[]", "{}", "null")  # an empty list or object, or null, as JSON text


@dataclass(frozen=True)
class Turn:
    role: str  # system, user, assistant or tool
    content: str
    reasoning: str = ""  # what the assistant thought before it answered, for templates that have a place for it
    name: str = ""
    learned: bool = True  # of an answer: weight 0 and train false say that it is context alone


def turns_of(place: str, value: Any, column: str) -> list[Turn]:
    """The turns in one column of a row. Raises StepFailed DatasetRowInvalid with place, turn and key."""
    if isinstance(value, str):  # csv and some exports hold the list as JSON text
        try:
            value = loads(value)
        except NotJson as error:
            printed = PRINTED.search(value) is not None
            why = "; it is what numpy prints, without commas: write the column with json.dumps" if printed else ""
            raise invalid(place, f"{column} is text but not a JSON list of turns{why}") from error
    if isinstance(value, dict) and value and all(isinstance(cells, list) for cells in value.values()):
        value = _transposed(place, column, value)
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise invalid(place, f"{column} must be a list of turns, each with a role and its content")
    return [_turn(place, f"{column}, turn {number}", turn) for number, turn in enumerate(value, start=1)]


def unfolded(value: Any) -> Any:
    """The turns in a text that holds a list of them, as a CSV's cells do; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        found = loads(value)
    except NotJson:
        return value
    are_turns = all(isinstance(turn, dict) and not turn.keys().isdisjoint(ROLE) for turn in found)
    return found if are_turns else value


def _transposed(place: str, column: str, cells: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Parquet files of the hub hold a list of turns as {role: [...], content: [...]}."""
    if len({len(values) for values in cells.values()}) > 1:
        raise invalid(place, f"{column} has lists of different lengths")
    return [dict(zip(cells, values, strict=True)) for values in zip(*cells.values(), strict=True)]


def _turn(place: str, where: str, turn: Mapping[str, Any]) -> Turn:
    given = _with_role({key: value for key, value in turn.items() if not is_empty(value)})
    refuse_unread(place, where, given, {*ROLE, *CONTENT, *NAME, *LEARNED, *REASONING, *DESCRIPTION})
    role = _role(place, where, _one(place, where, given, ROLE))
    return Turn(
        role,
        said(place, where, _one(place, where, given, CONTENT)),
        text_of(place, where, _one(place, where, given, REASONING)),
        text_of(place, where, given.get("name")),
        _learned(place, where, role, given),
    )


def _with_role(given: dict[str, Any]) -> dict[str, Any]:
    """The turn with a role: LangChain's turns call it `type`, which in turns with a role may say that they are messages."""
    others = {key: value for key, value in given.items() if key != KIND}
    if others.keys().isdisjoint(ROLE):
        return {ROLE[0]: given[KIND], **others} if KIND in given else given
    return others if given.get(KIND) in KINDS else given


def _role(place: str, where: str, name: Any) -> str:
    plain = name.strip().lower() if isinstance(name, str) else None
    if plain in CALLS:
        raise invalid(place, f"{where}: role {plain} is a call of a tool; {CALLED}")
    if plain not in ROLES:
        raise invalid(place, f"{where}: role must be one of {', '.join(ROLES)}")
    return ROLES[plain]


def said(place: str, where: str, content: Any) -> str:
    """A text, or the texts of OpenAI's, Anthropic's or Gemini's content parts one after the other."""
    parts = [content] if isinstance(content, dict) else content
    if isinstance(parts, list):
        return "".join(_part(place, f"{where}, part {n}", part) for n, part in enumerate(parts, start=1))
    return text_of(place, where, content)


def _one(place: str, where: str, given: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The value under whichever of the keys a turn has; None under none."""
    found = [(key, given[key]) for key in keys if key in given]
    if any(value != found[0][1] for _, value in found):
        raise invalid(place, f"{where}: {' and '.join(key for key, _ in found)} say different things: keep one of them")
    return found[0][1] if found else None


def _part(place: str, where: str, part: Any) -> str:
    """One of OpenAI's content parts."""
    if isinstance(part, str):
        return text_of(place, where, part)
    if not isinstance(part, dict):
        raise invalid(place, f"{where} must be text, not {type(part).__name__}")
    given = {key: value for key, value in part.items() if not is_empty(value)}
    kind = given.pop("type", "text")
    if kind not in ("text", "input_text", "output_text"):
        raise invalid(place, f"{where} is of another type than text, and only text is learned: remove the row, or the part")
    refuse_unread(place, where, given, {"text", "id", "index"})
    if not isinstance(given.get("text"), str):
        raise invalid(place, f"{where} has no text")
    return text_of(place, where, given["text"])


def _learned(place: str, where: str, role: str, given: Mapping[str, Any]) -> bool:
    """Whether an answer is learned: weight 1 or 0 as OpenAI has it, train true or false as Axolotl, loss as LLaMA-Factory."""
    learned = True
    for key in (key for key in LEARNED if key in given):
        if not isinstance(given[key], bool | int | float) or given[key] not in (0, 1):
            raise invalid(place, f"{where}: {key} must be 1, learned, or 0, not learned (or true and false)")
        if given[key] and role != "assistant":
            raise invalid(place, f"{where}: {key} asks to learn a turn of {role}, but only answers are learned: remove it")
        learned = learned and bool(given[key])
    return learned


def refuse_unread(place: str, where: str, given: Mapping[str, Any], known: set[str]) -> None:
    """Raises StepFailed DatasetRowInvalid where a value lies under a key that nobody reads."""
    unread = next((key for key in given if key not in known and given[key] not in NOTHING), None)
    if unread is not None:
        shown = unread if quotable(unread) else "of another name"
        raise invalid(place, f"{where}: key {shown} is not read; {INSTEAD.get(unread, OTHERWISE)}")


def is_empty(value: Any) -> bool:
    """Whether a cell or key holds nothing: null, pandas' NaN, text without a character, an empty list or object."""
    return value is None or value != value or (isinstance(value, str | list | dict) and not value)


def text_of(place: str, column: str, value: Any) -> str:
    """A cell as text: numbers as Python writes them, nothing for null and pandas' NaN. Raises StepFailed DatasetRowInvalid."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool | int | float | Decimal):
        return str(value)
    if not isinstance(value, str):
        raise invalid(place, f"{column} must be text, not {type(value).__name__}: write one text into it")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise invalid(
                place, f"{column} holds one half of a surrogate pair (\\ud800 to \\udfff), which is no text"
            ) from error
    return value


@contextmanager
def at(place: str, doing: str) -> Iterator[None]:
    """Whatever is raised on the way through one row becomes DatasetRowInvalid with its place, and without its content."""
    try:
        yield
    except (StepFailed, MemoryError):
        raise
    except Exception as error:
        raise invalid(place, f"can't be {doing} ({type(error).__name__}): mend or remove the row") from error


def invalid(place: str, why: str) -> StepFailed:
    return StepFailed(StepReason.DatasetRowInvalid, f"spec.dataset: {place}: {why}")
