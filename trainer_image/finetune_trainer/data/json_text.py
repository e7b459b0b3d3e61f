"""JSON as people have it: read where it can mean one thing only, else refused with what it is and how to make it right."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

KEY_SHOWN = 40  # characters of a key that a message quotes
PYTHON_READ = 1 << 20  # characters of a text that is tried as Python's notation, whose parser takes much memory
NOT_SPACE = re.compile(r"\S")
YAML = re.compile(r"(---|%YAML|-\s+\w+:|\w+:\s)")
PYTHONS = re.compile(r"(True|False|None|nan|array\()")


class NotJson(ValueError):
    """Why a text is not read as JSON, and the line of it."""

    def __init__(self, why: str, line: int = 1) -> None:
        super().__init__(why)
        self.line = line


def loads(text: str) -> Any:
    """The value of a text in JSON, or in Python's notation, which str() and pandas' to_csv leave of lists and objects.

    A comma behind it, as lists have that are cut into lines, is passed over. Raises NotJson.
    """
    text = text.rstrip().removesuffix(",")
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        return _otherwise(text, error)


def all_of(text: str) -> list[Any]:
    """The values of a text that holds one or several, one after the other, on as many lines as they like. Raises NotJson."""
    values, at, end = [], 0, len(text.rstrip())
    try:
        while (at := _start(text, at)) < end:
            value, at = DECODER.raw_decode(text, at)
            values.append(value)
    except NotJson as error:
        raise NotJson(str(error), text.count("\n", 0, at) + 1) from error
    except json.JSONDecodeError as error:
        return [_otherwise(text, error)]
    return values


def _start(text: str, at: int) -> int:
    """Where the first character from there on stands that is no white space."""
    found = NOT_SPACE.search(text, at)
    return len(text) if found is None else found.start()


def quotable(key: Any) -> bool:
    """Whether a message may name a key: it is no row's content."""
    return isinstance(key, str) and len(key) <= KEY_SHOWN and key.isidentifier()


def _otherwise(text: str, error: json.JSONDecodeError) -> Any:
    if text.lstrip()[:1] in ("{", "[") and len(text) <= PYTHON_READ and (found := _python(text.strip())) is not None:
        return found
    hint = _hint(text, error.pos)
    why = f"not JSON: {error.msg} at column {error.colno}{f'; {hint}' if hint else ''}"
    raise NotJson(why, error.lineno) from error


def _python(text: str) -> Any:
    """The value of a literal in Python's notation as JSON has it; None where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            tree = ast.parse(text, mode="eval")
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Dict)):
            _once([(ast.literal_eval(key), None) for key in node.keys if key is not None])
        return DECODER.decode(json.dumps(ast.literal_eval(tree)))
    except NotJson:
        raise
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """An object, each key of which comes once: of two values, one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise NotJson(f"an object has the key {twice if quotable(twice) else 'of the same name'} twice: keep one of them")
    return found


def _hint(text: str, position: int) -> str:
    """What a text is that JSON's parser stopped in, and what to do; nothing where that can't be told."""
    start, before, rest = text.lstrip(), text[:position].rstrip()[-1:], text[position : position + 8]
    if "\0" in text:
        return "it holds NUL bytes, as files do whose writing was cut short: remove them"
    if start.startswith("<"):
        return "this is XML or HTML: save the rows as JSON lines"
    if start.startswith(("//", "/*", "#")):
        return "JSON has no comments: remove them"
    if YAML.match(start):
        return "this looks like YAML: save the rows as JSON lines"
    if before == "," and rest[:1] in ("}", "]"):
        return "a comma stands before the closing bracket: remove it"
    if before in ("}", "]") and rest[:1] in ("{", "["):
        return "put each row on a line of its own"
    if rest[:1] == "'" or PYTHONS.match(rest):
        return "this is Python's notation: write the rows with json.dumps"
    return ""


DECODER = json.JSONDecoder(object_pairs_hook=_once)
