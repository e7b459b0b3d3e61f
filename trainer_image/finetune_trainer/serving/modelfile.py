"""What a Modelfile tells of the prompts that Ollama makes of conversations. Pure.

Ollama puts SYSTEM before conversations that begin without a system message, and passes over messages of a role for which the
template has no place, in silence. So the front must know both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NAME = "Modelfile"
VALUE = r'\s+(?:"""(.*?)"""|"(.*?)"|(.+?))\s*$'
SYSTEM, TEMPLATE = (re.compile(f"^{word}{VALUE}", re.DOTALL | re.MULTILINE | re.IGNORECASE) for word in ("SYSTEM", "TEMPLATE"))
ROLE = re.compile(r'eq\s+\S*\.Role\s+"(\w+)"')
ANY_ROLE = re.compile(r"\{\{-?\s*(?:\S*\.Role|else)\s*-?\}\}")  # it writes the role's name, or has a place for all others


@dataclass(frozen=True)
class Told:
    system: str | None = None  # the message that stands before conversations without one
    roles: frozenset[str] | None = None  # of messages that have a place in a prompt; None: any, or nobody can say
    has_tools: bool = False


def read(text: str) -> Told:
    """What the text of a Modelfile tells. Without a template in it Ollama guesses one."""
    template = _value(TEMPLATE, text)
    if template is None:
        return Told(_value(SYSTEM, text))
    named = frozenset(ROLE.findall(template)) or frozenset({"user", "assistant"})
    roles = None if ANY_ROLE.search(template) else named | ({"system"} if ".System" in template else set())
    return Told(_value(SYSTEM, text), roles, ".Tools" in template)


def _value(word: re.Pattern[str], text: str) -> str | None:
    found = word.search(text)
    return None if found is None else next(value for value in found.groups() if value is not None)
