"""From rows of any known format to examples: turns of a conversation, or plain text.

    Messages          {messages: [{role, content}]}
    PromptCompletion  {prompt, completion}
    Alpaca            {instruction, input?, output}
    ShareGPT          {conversations: [{from, value}]}     human, gpt, … become user, assistant
    Text              {text}
    Classification    {text, label}
    Preference        {prompt, chosen, rejected}           the prompt may be what chosen and rejected both begin with
    UnpairedPreference  {prompt, completion, label}        true: a desirable answer, false: an undesirable one

spec.dataset.columns gives the columns of a row these names first: {prompt: question}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.reports import ExitCode
from finetune_trainer.data.rows import Row
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
}

FLAGS = {"true": True, "false": False, "1": True, "0": False}  # what says whether an answer is desirable
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"  # what parts the turns of dialogues that are one text


@dataclass(frozen=True)
class Turn:
    role: str  # system, user, assistant or tool
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the assistant's answer, or (turns empty) plain text.

    `rejected` is the answer that should have been worse than the last turn's, in rows of preferences. `desirable` says
    whether the last turn is to be learned or to be avoided, in rows of unpaired ones.

    `plain` says that a model without a chat template may see prompt and answer as they are, one after the other.
    """

    place: str
    turns: tuple[Turn, ...]
    text: str = ""
    plain: bool = False
    rejected: str | None = None
    desirable: bool | None = None


def examples(
    rows: Iterable[Row], format: DatasetFormat, columns: Mapping[str, str], system_prompt: str | None
) -> tuple[list[Example], int]:
    """Rows as examples, and how many were left out because prompt or answer is empty.

    Raises StepFailed DatasetRowInvalid, which names the row and what is wrong with it, never its content.
    """
    read = READ[format]
    made: list[Example] = []
    empty = 0
    for row in rows:
        values = {**row.values, **{name: row.values.get(source) for name, source in columns.items()}}
        example = read(row.place, values)
        if example is None:
            empty += 1
            continue
        made.append(_with_system(example, system_prompt))
    return made, empty


def _with_system(example: Example, system_prompt: str | None) -> Example:
    if not system_prompt or not example.turns or example.turns[0].role == "system":
        return example
    return replace(example, turns=(Turn("system", system_prompt), *example.turns))


# ── One reader a format: a row's values → an example, or None where prompt or answer is empty ─────────────────────────


def _messages(place: str, values: Mapping[str, Any]) -> Example | None:
    return _conversation(place, values["messages"], "messages")


def _share_gpt(place: str, values: Mapping[str, Any]) -> Example | None:
    return _conversation(place, values["conversations"], "conversations")


def _prompt_completion(place: str, values: Mapping[str, Any]) -> Example | None:
    prompt, completion = values.get("prompt"), values.get("completion")
    if isinstance(prompt, list):  # TRL's conversational form
        answer = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
        return _conversation(place, [*prompt, *answer], "prompt")
    return _answer(place, _text(place, "prompt", prompt), _text(place, "completion", completion), keep=True)


def _alpaca(place: str, values: Mapping[str, Any]) -> Example | None:
    instruction = _text(place, "instruction", values.get("instruction")).strip()
    given = _text(place, "input", values.get("input")).strip()
    prompt = f"{instruction}\n\n{given}" if given else instruction
    return _answer(place, prompt, _text(place, "output", values.get("output")))


def _classification(place: str, values: Mapping[str, Any]) -> Example | None:
    return _answer(place, _text(place, "text", values.get("text")), _text(place, "label", values.get("label")))


def _plain_text(place: str, values: Mapping[str, Any]) -> Example | None:
    text = _text(place, "text", values.get("text"))
    return Example(place, (), text=text, plain=True) if text.strip() else None


def _preference(place: str, values: Mapping[str, Any]) -> Example | None:
    """One prompt with a better and a worse answer; the better one is the conversation's last turn."""
    prompt, chosen, rejected = (values.get(name) for name in ("prompt", "chosen", "rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _preferred_turns(place, prompt, _turns(place, chosen, "chosen"), _turns(place, rejected, "rejected"))
    good, bad = _text(place, "chosen", chosen), _text(place, "rejected", rejected)
    if not good.strip() or not bad.strip() or good == bad:
        return None
    if isinstance(prompt, list):
        return _preferred_turns(place, prompt, [Turn("assistant", good)], [Turn("assistant", bad)])
    if prompt is None:
        before, good, bad = _dialogue(place, good, bad)
        return _preferred_turns(place, None, [*before, Turn("assistant", good)], [*before, Turn("assistant", bad)])
    example = _answer(place, _text(place, "prompt", prompt), good, keep=True)
    return None if example is None else replace(example, rejected=bad)


def _unpaired_preference(place: str, values: Mapping[str, Any]) -> Example | None:
    example = _prompt_completion(place, values)
    return None if example is None else replace(example, desirable=_desirable(place, values.get("label")))


def _desirable(place: str, label: Any) -> bool:
    known = FLAGS.get(label.strip().lower() if isinstance(label, str) else str(label).lower().removesuffix(".0"))
    if known is None:
        raise invalid(place, "label must be true, of a desirable answer, or false (or 1 and 0)")
    return known


def _preferred_turns(place: str, prompt: Any, chosen: list[Turn], rejected: list[Turn]) -> Example | None:
    """Two conversations, equal up to one last answer each; those without a question of their own come after the prompt."""
    if not any(turn.role == "user" for turn in chosen):
        asked = _turns(place, prompt, "prompt") if isinstance(prompt, list) else [Turn("user", _text(place, "prompt", prompt))]
        chosen, rejected = [*asked, *chosen], [*asked, *rejected]
    answered = all(turns and turns[-1].role == "assistant" for turns in (chosen, rejected))
    if not answered or chosen[:-1] != rejected[:-1]:
        raise invalid(place, "chosen and rejected must be the same conversation but for one last answer of the assistant")
    good, bad = chosen[-1].content, rejected[-1].content
    if good == bad or not bad.strip() or not good.strip() or not any(t.role == "user" and t.content.strip() for t in chosen):
        return None
    return Example(place, tuple(chosen), rejected=bad)


def _dialogue(place: str, chosen: str, rejected: str) -> tuple[list[Turn], str, str]:
    """Turns that two dialogues share, and the last answer of each: text in which Human: and Assistant: take turns."""
    before, mark, good = chosen.rpartition(ASSISTANT)
    same, _, bad = rejected.rpartition(ASSISTANT)
    if not mark or before != same or HUMAN not in before:
        raise invalid(
            place, "chosen and rejected do not begin with the same prompt; name its column: spec.dataset.columns: {prompt: …}"
        )
    turns = []
    for asked in before.split(HUMAN)[1:]:
        question, *answers = asked.split(ASSISTANT)
        turns += [Turn("user", question.strip()), *(Turn("assistant", answer.strip()) for answer in answers)]
    return turns, good.strip(), bad.strip()


READ: dict[DatasetFormat, Callable[[str, Mapping[str, Any]], Example | None]] = {
    DatasetFormat.MESSAGES: _messages,
    DatasetFormat.SHARE_GPT: _share_gpt,
    DatasetFormat.PROMPT_COMPLETION: _prompt_completion,
    DatasetFormat.ALPACA: _alpaca,
    DatasetFormat.CLASSIFICATION: _classification,
    DatasetFormat.TEXT: _plain_text,
    DatasetFormat.PREFERENCE: _preference,
    DatasetFormat.UNPAIRED_PREFERENCE: _unpaired_preference,
}


def _answer(place: str, prompt: str, answer: str, keep: bool = False) -> Example | None:
    """One question and its answer. `keep`: the prompt's own white space parts it from the answer in plain text."""
    if not prompt.strip() or not answer.strip():
        return None
    text = prompt if keep else prompt.strip() + "\n\n"
    return Example(place, (Turn("user", prompt), Turn("assistant", answer)), text=text, plain=True)


def _conversation(place: str, value: Any, column: str) -> Example | None:
    turns = _turns(place, value, column)
    while turns and turns[-1].role != "assistant":
        turns.pop()  # nothing to learn after the last answer
    if not any(turn.role == "user" for turn in turns) or not turns or not turns[-1].content.strip():
        return None
    return Example(place, tuple(turns))


def _turns(place: str, value: Any, column: str) -> list[Turn]:
    if isinstance(value, str):  # csv and some exports hold the list as JSON text
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise invalid(place, f"{column} is text but not a JSON list of turns") from error
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise invalid(place, f"{column} must be a list of turns, each with a role and its content")
    return [_turn(place, column, number, turn) for number, turn in enumerate(value, start=1)]


def _turn(place: str, column: str, number: int, turn: Mapping[str, Any]) -> Turn:
    where = f"{column}, turn {number}"
    name = turn.get("role", turn.get("from"))
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise invalid(place, f"{where}: role must be one of {', '.join(ROLES)}")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):  # OpenAI's content parts
        content = "".join(part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text")
    return Turn(role, _text(place, where, content))


def _text(place: str, column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        return value
    raise invalid(place, f"{column} must be text, not {type(value).__name__}")


def invalid(place: str, why: str) -> StepFailed:
    return StepFailed(ExitCode.BAD_DATA, "DatasetRowInvalid", f"spec.dataset: {place}: {why}")
