"""JSON that somebody else wrote, read within bounds: the only place where foreign text becomes values.

    an answer of the API server ─► decode_objects ─► objects; what lies too deep is cut out, and the object says so
    a line that a pod printed   ─► decode_line ────► a mapping, or None

Python's own parser gives up on deep text with a RecursionError, and so does whatever walks a deep value later. The API
server takes 10,000 levels: without a bound here one object ends a loop that serves all the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from finetune_operator.meta import Object

DEEPEST = 64  # levels of one object; a pod, with all that it may hold, has twelve
ENVELOPE = 2  # levels around an object: a list's items, or a watch's event
LARGEST_LINE = 16384  # characters; a progress report has some hundred
LINE_DEEPEST = 4
LARGEST_NUMBER = 2**53
UNREADABLE = "finetune.dev/unreadable"  # at an object's root, where no API has a field: why a part of it was cut out

_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[][{}:,]', re.DOTALL)
_NESTED = (dict, list)  # as a tuple: `dict | list` would be made anew for each value that is looked at
_SHOWN = 3  # names of a path that a sentence tells


class Body(Protocol):
    """A response's body, as aiohttp has it."""

    def iter_chunked(self, n: int) -> AsyncIterator[bytes]: ...


def decode_objects(text: str | bytes) -> Any:
    """An answer of the API server: an object, a list of them, or a watch's event.

    Where one lies deeper than DEEPEST levels, the parts below are null and UNREADABLE says which field that is. Raises
    ValueError for what is no JSON.
    """
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    try:
        value = json.loads(text)
        if not _is_deeper(value, DEEPEST + ENVELOPE):
            return value
    except RecursionError:
        pass
    flat, cuts = _cut(text, DEEPEST + ENVELOPE)
    value = json.loads(flat)
    for path in cuts:
        body, field = _object_at(value, path)
        if field[:2] == ("metadata", "managedFields"):  # mirrors the field that is at fault
            continue
        body[UNREADABLE] = f"{'.'.join(map(str, field[:_SHOWN]))} has more than {DEEPEST} levels of nesting; make it flatter"
    return value


def decode_line(text: str) -> dict[str, Any] | None:
    """A line that is a small, flat JSON mapping, its numbers finite and of 53 bits at most; None for any other."""
    if len(text) > LARGEST_LINE or not text.startswith("{"):
        return None
    try:
        value = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and not _is_deeper(value, LINE_DEEPEST) else None


async def lines(body: Body, size: int = 2**20) -> AsyncIterator[bytes]:
    """The lines of a body, however long: StreamReader's own iteration fails at 128 KiB. A last line may be cut off."""
    parts: list[bytes] = []
    async for chunk in body.iter_chunked(size):
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            if joined := b"".join((*parts, line)):
                yield joined
            parts.clear()
        if rest:
            parts.append(rest)


def _number(text: str) -> int | float:
    value = float(text)
    if not abs(value) <= LARGEST_NUMBER:  # nor is NaN
        raise ValueError(f"{text[:20]} is out of bounds")
    return int(value) if text.lstrip("-").isdigit() else value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and mappings lie in each other to more than so many levels; walked level by level, not by recursion."""
    layer = [value] if isinstance(value, _NESTED) else []
    for _ in range(levels):
        layer = [v for one in layer for v in (one.values() if isinstance(one, dict) else one) if isinstance(v, _NESTED)]
        if not layer:
            return False
    return True


def _cut(text: str, levels: int) -> tuple[str, list[tuple[str | int, ...]]]:
    """The text with null for each value below so many levels, and the paths of those."""
    kept: list[str] = []
    cuts: list[tuple[str | int, ...]] = []
    begin = depth = 0
    for mark, start, end, path in _marks(text, levels):
        if mark in "[{":
            depth += 1
            if depth == levels + 1:
                kept += [text[begin:start], "null"]
                cuts.append(tuple(path))
        elif mark in "]}":
            depth -= 1
            if depth == levels:
                begin = end
    return "".join((*kept, text[begin:])), cuts


def _marks(text: str, levels: int) -> Iterator[tuple[str, int, int, list[str | int]]]:
    """Each bracket with its place in the text and the path of names and numbers that leads to it, as far as `levels`."""
    path: list[str | int] = []
    depth, last = 0, ""
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark[0] == '"':
            last = mark
            continue
        if mark in "[{":
            yield mark, token.start(), token.end(), path
            depth += 1
            if depth <= levels:
                path.append(0 if mark == "[" else "")
        elif mark in "]}":
            yield mark, token.start(), token.end(), path
            if depth <= levels:
                path.pop()
            depth -= 1
        elif depth <= levels and path:
            at = path[-1]
            if mark == ":":
                path[-1] = json.loads(last)
            elif isinstance(at, int):
                path[-1] = at + 1


def _object_at(value: Any, path: tuple[str | int, ...]) -> tuple[Object, tuple[str | int, ...]]:
    """The object that a path leads into, and the rest of the path within it."""
    match path:
        case ("items", int(number), *rest) if "items" in value:
            return value["items"][number], tuple(rest)
        case ("object", *rest) if "type" in value:
            return value["object"], tuple(rest)
    return value, path
