"""Ollama's Modelfile for a GGUF file: prompt template, default system message and stop tokens.

Ollama reads Go templates, models carry Jinja templates. The chat template is rendered with marked messages and cut at
the marks into what stands before and after a message of each role; from these parts the Go template is written. One that takes
no system messages, as Gemma's, is cut without them. One that tells the date (Llama 3.2's) tells that of the day on which it was
cut, and a comment says so: Ollama writes dates in one form only. A chat template that can't be put together again from its
parts gets no Modelfile: without TEMPLATE, Ollama would ask the model in another form than it was trained in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant")
MARKS = {role: f"\u2063{role}-mark\u2063" for role in ROLES}  # invisible separators, which no template writes
DATED = "strftime_now"  # what a chat template calls to tell the date
DATE_SAID = "# The model's chat template tells the date of the day. The one below tells that on which this file was written."
AGAIN = "\u2063again-mark\u2063"


@dataclass(frozen=True)
class ChatParts:
    """What stands around the messages of each role, and after the last one to ask for an answer."""

    before: Mapping[str, str]
    after: Mapping[str, str]
    generation: str
    default_system: str | None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for a conversation, as Ollama makes it from `go_template`."""
        shown = list(messages)
        if self.default_system is not None and shown[0]["role"] != "system":
            shown.insert(0, {"role": "system", "content": self.default_system})
        return "".join(self.before[m["role"]] + m["content"] + self.after[m["role"]] for m in shown) + self.generation

    def go_template(self) -> str:
        """The same in Go's template language."""
        cases = [
            f'{{{{ if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{self.after[role]}{{{{ end }}}}'
            for role, before in self.before.items()
        ]
        opening = ""
        if self.default_system == "":  # a SYSTEM without a text would be no system message to Ollama
            opening = f"{{{{ if not .System }}}}{self.before['system']}{self.after['system']}{{{{ end }}}}"
        return opening + "{{ range .Messages }}" + "".join(cases) + "{{ end }}" + self.generation


def write_modelfile(gguf: str, tokenizer: Any, stops: Sequence[str]) -> str | None:
    """Text of a Modelfile that serves the file `gguf` beside it; None where Go's language can't say the chat template."""
    lines = [f"FROM ./{gguf}"]
    parts = chat_parts(tokenizer)
    if parts is None and tokenizer.chat_template:
        return None
    if parts is not None:
        lines += [DATE_SAID] if DATED in tokenizer.chat_template else []
        lines.append(f'TEMPLATE """{parts.go_template()}"""')
        if parts.default_system:
            lines.append(f'SYSTEM """{parts.default_system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines.append("PARAMETER temperature 0")
    return "\n".join(lines) + "\n"


def chat_parts(tokenizer: Any) -> ChatParts | None:
    """The parts of a tokenizer's chat template; None where there is none or more than roles decides about it."""
    if not tokenizer.chat_template:
        return None
    with_system = [_turns("user"), _turns("system", "user"), _turns("system", "user", "assistant", "user")]
    without = [_turns("user"), _turns("user", "assistant", "user")]
    return _faithful(tokenizer, _parts, with_system) or _faithful(tokenizer, _parts_without_system, without)


def _faithful(tokenizer: Any, cut: Callable[[Any], ChatParts], samples: Sequence[list[dict[str, str]]]) -> ChatParts | None:
    """The parts that `cut` finds, if the samples can be put together of them."""
    from jinja2 import TemplateError

    try:
        parts = cut(tokenizer)
        same = all(parts.render(sample) == _rendered(tokenizer, sample, generation=True) for sample in samples)
    except (ValueError, IndexError, TemplateError):  # a mark is missing, or the template refuses a role
        return None
    return parts if same else None


def _parts(tokenizer: Any) -> ChatParts:
    """Cut two rendered conversations at their marks. Raises ValueError where a mark isn't in the text."""
    open_end = _rendered(tokenizer, _turns("system", "user"), generation=False)
    with_generation = _rendered(tokenizer, _turns("system", "user"), generation=True)
    after_user = open_end.split(MARKS["user"])[1]
    generation = with_generation.split(MARKS["user"])[1].removeprefix(after_user)
    conversation = [*_turns(*ROLES), {"role": "user", "content": AGAIN}]
    whole = _rendered(tokenizer, conversation, generation=False)
    before_system, rest = whole.split(MARKS["system"])
    system_to_user, rest = rest.split(MARKS["user"])
    user_to_assistant, rest = rest.split(MARKS["assistant"])
    assistant_to_user, _ = rest.split(AGAIN)
    ends = _rendered(tokenizer, _turns("system", "user", "assistant"), generation=False)
    after_assistant = ends.split(MARKS["assistant"])[1]
    before_user = assistant_to_user.removeprefix(after_assistant)
    after = {"system": system_to_user.removesuffix(before_user), "user": after_user, "assistant": after_assistant}
    before = {"system": before_system, "user": before_user, "assistant": user_to_assistant.removeprefix(after_user)}
    opening = _rendered(tokenizer, _turns("user"), generation=False).split(MARKS["user"])[0]
    default = opening.removesuffix(before_user).removeprefix(before_system).removesuffix(after["system"])
    return ChatParts(before, after, generation, default if opening != before_user else None)


def _parts_without_system(tokenizer: Any) -> ChatParts:
    """The parts of a template that takes none: a question, its answer and another question are cut. Raises ValueError, too."""
    question = _rendered(tokenizer, _turns("user"), generation=False)
    before_user, after_user = question.split(MARKS["user"])
    asked = _rendered(tokenizer, _turns("user"), generation=True).split(MARKS["user"])[1]
    whole = _rendered(tokenizer, [*_turns("user", "assistant"), {"role": "user", "content": AGAIN}], generation=False)
    user_to_assistant, rest = whole.split(MARKS["user"])[1].split(MARKS["assistant"])
    after_assistant = rest.split(AGAIN)[0].removesuffix(before_user)
    before = {"user": before_user, "assistant": user_to_assistant.removeprefix(after_user)}
    after = {"user": after_user, "assistant": after_assistant}
    return ChatParts(before, after, asked.removeprefix(after_user), None)


def _turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": MARKS[role]} for role in roles]


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, generation: bool) -> str:
    """The chat template's text, without the start token where the tokenizer (and so llama.cpp) adds one by itself."""
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))
    adds_start = bool(getattr(tokenizer, "add_bos_token", False)) and tokenizer.bos_token
    return text.removeprefix(tokenizer.bos_token) if adds_start else text
