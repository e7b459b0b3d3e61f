"""Validation errors as sentences for people: one for each wrong field, with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from finetune_operator.neighbours import remedy
from finetune_operator.wording import of_error, of_pattern


def sentences(error: ValidationError, model: type[BaseModel], at: str) -> list[str]:
    """One sentence for each wrong field. `at` is the path of the value that was validated as a `model`, such as spec."""
    found = [_sentence(dict(e), model, at) for e in error.errors(include_url=False)]
    return list(dict.fromkeys(found))


def either(names: Sequence[str]) -> str:
    """a, b or c."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _sentence(error: dict[str, Any], model: type[BaseModel], at: str) -> str:
    path = at
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    path = path.removeprefix(".")
    context, given = error.get("ctx", {}), shown(error.get("input"))
    match error["type"]:
        case "missing":
            return f"{path} is required; add it"
        case "extra_forbidden":
            return f"{path} is not a field; {remedy(model, error['loc'], at)}"
        case "enum" | "literal_error":
            return f"{path} is {given}; it takes {context['expected']}"
        case "string_pattern_mismatch":
            return f"{path} is {given}; {of_pattern(context['pattern'], str(error['input']))}"
        case "greater_than" | "greater_than_equal":
            word, bound = ("above", context.get("gt")) if "gt" in context else ("at least", context.get("ge"))
            return f"{path} is {given}; it must be {word} {bound}"
        case "less_than" | "less_than_equal":
            word, bound = ("below", context.get("lt")) if "lt" in context else ("at most", context.get("le"))
            return f"{path} is {given}; it must be {word} {bound}"
    if error["type"] == "value_error":
        return f"{path}: {context['error']}"
    said = of_error(error["type"], context, error.get("input")) or f"{error['msg'][:1].lower()}{error['msg'][1:]}"
    return f"{path} is {given}; {said}"


def shown(value: Any) -> str:
    """A wrong value as a sentence names it."""
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'}"
    text = "empty" if value is None or value == "" else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
