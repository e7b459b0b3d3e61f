"""A conversation as the model's chat template writes it: the text, and where in it each answer stands.

    <|im_start|>user⏎Who keeps the light?<|im_end|>⏎<|im_start|>assistant⏎Mira.<|im_end|>⏎
    └─────────────────────── the answer's prompt ───────────────────────┘└─── answer ───┘

An answer's place is told from three texts: of the turns before it, of these with the generation prompt, and of those up to
it. Where the whole text does not begin with the last of them, the template writes that answer otherwise once others follow.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.data.control_tokens import ControlTokens
from finetune_trainer.data.conversation import Example
from finetune_trainer.data.turns import REASONING, Turn, invalid
from finetune_trainer.failures import StepFailed, first_line


@dataclass(frozen=True)
class Templated:
    """Spans are ranges of characters in `text`, in which the letters of control tokens in turns are hidden."""

    text: str
    prompt: str  # what comes before the last answer, its generation prompt included
    learned: tuple[tuple[int, int], ...]
    unlearned: tuple[tuple[int, int], ...]  # answers that must not be learned
    changed: tuple[int, ...]  # numbers of the turns whose answers stand otherwise in it than as the last ones


class Template:
    """The chat template of one tokenizer. `every_answer`: also those that are not learned must have their place."""

    def __init__(self, tokenizer: Any, control: ControlTokens, *, every_answer: bool) -> None:
        self._tokenizer, self._control, self._every_answer = tokenizer, control, every_answer
        _check(tokenizer.chat_template)

    def write(self, example: Example) -> Templated:
        """Raises StepFailed ChatTemplateRefused where the template does not take the turns, or leaves something out."""
        turns, text = example.turns, self._template(example, example.turns)
        self._check_whole(example, text)
        asked = next((number for number, turn in enumerate(turns) if turn.role == "user"), 0)
        learned: list[tuple[int, int]] = []
        unlearned: list[tuple[int, int]] = []
        changed: list[int] = []
        prompt = ""
        for number, turn in enumerate(turns):
            if turn.role != "assistant" or number < asked or not (turn.learned or self._every_answer):
                continue
            found = self._span(example, text, number)
            if found is not None:
                (learned if turn.learned else unlearned).append(found[1])
                prompt = found[0]
                self._check_reasoning(example, number, text[slice(*found[1])])
            elif number + 1 == len(turns) or not turn.learned:
                raise _refused(
                    "the chat template of spec.model doesn't put an answer after its generation prompt, so what to learn"
                    " can't be told from the prompt: name another in spec.model.chatTemplate, or take rows of format Text",
                )
            else:
                changed.append(number)
        return Templated(text, prompt, tuple(learned), tuple(unlearned), tuple(changed))

    def _span(self, example: Example, text: str, number: int) -> tuple[str, tuple[int, int]] | None:
        """The prompt of one answer and the answer's range in the text; None where the template writes it otherwise there."""
        turns = example.turns
        before = self._template(example, turns[:number])
        asked = self._template(example, turns[:number], add_generation_prompt=True)
        answered = text if number + 1 == len(turns) else self._template(example, turns[: number + 1])
        start = common(text, asked)
        return (asked, (start, len(answered))) if start >= len(before) and text.startswith(answered) else None

    def _template(self, example: Example, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        if not turns and not add_generation_prompt:
            return ""
        from jinja2 import TemplateError

        messages = [self._message(example, turn) for turn in turns]
        try:
            return str(
                self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
            )
        except TemplateError as error:
            raise _refused(
                f"spec.dataset: {example.place}: the model's chat template refuses the roles"
                f" {', '.join(turn.role for turn in turns)}: {first_line(error)}",
            ) from error
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # what an expression in it comes to
            raise _refused(
                f"spec.dataset: {example.place}: the model's chat template can't be rendered ({type(error).__name__}): name"
                " another in spec.model.chatTemplate"
            ) from error

    def _message(self, example: Example, turn: Turn) -> dict[str, str]:
        """A turn as templates take it. What it was thinking has several names, and a template knows one of them."""
        parts = {"content": turn.content, **(dict.fromkeys(REASONING, turn.reasoning) if turn.reasoning else {})}
        if any(map(self._control.are_in, parts.values())):
            parts = {key: self._control.hide(example.place, text) for key, text in parts.items()}
        return {"role": turn.role, **parts, **({"name": turn.name} if turn.name else {})}

    def _check_whole(self, example: Example, text: str) -> None:
        """Raises StepFailed where the template leaves out what was asked, or under which rules."""
        for number, turn in enumerate(example.turns, start=1):
            said = self._message(example, turn)["content"]
            forms = (said.strip(), json.dumps(said, ensure_ascii=False)[1:-1].strip())
            if turn.role != "assistant" and not any(form in text or _spaced(form) in _spaced(text) for form in forms):
                raise _refused(
                    f"spec.dataset: {example.place}: the model's chat template leaves turn {number}, of role {turn.role}, out"
                    " of the text: remove such turns, or name another template in spec.model.chatTemplate",
                )

    def _check_reasoning(self, example: Example, number: int, answer: str) -> None:
        reasoning = self._message(example, example.turns[number]).get(REASONING[0], "")
        if _spaced(reasoning) not in _spaced(answer):
            raise invalid(
                example.place,
                f"turn {number + 1} has reasoning, for which the model's chat template has no place: write it into content,"
                " remove it, or name another template in spec.model.chatTemplate",
            )


def _check(template: Any) -> None:
    """Raises StepFailed ChatTemplateRefused for templates of which none is that for conversations."""
    if template and not isinstance(template, str) and not (isinstance(template, dict) and "default" in template):
        names = f"templates named {', '.join(map(str, template))}, of which none is named default"
        said = names if isinstance(template, dict) else f"template that is no text but a {type(template).__name__}"
        raise _refused(f"spec.model has chat {said}: name one in spec.model.chatTemplate")


def _spaced(text: str) -> str:
    """The text with one space for each run of white space."""
    return " ".join(text.split())


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _refused(message: str) -> StepFailed:
    return StepFailed(StepReason.ChatTemplateRefused, message)
