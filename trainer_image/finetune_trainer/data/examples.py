"""From rows of any known format to examples: turns of a conversation, or plain text.

    Messages          {messages: [{role, content}]}
    PromptCompletion  {prompt, completion}
    Alpaca            {instruction, input?, output}
    ShareGPT          {conversations: [{from, value}]}     human, gpt, … become user, assistant
    Text              {text}
    Classification    {text, label}
    Preference        {prompt, chosen, rejected}           preferences.py reads them
    UnpairedPreference  {prompt, completion, label}        true: a desirable answer, false: an undesirable one

All but Text may have the columns system and history, too. detection.py says which column of a file stands for which of
these names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.data import preferences
from finetune_trainer.data.conversation import Example, answered, conversation
from finetune_trainer.data.json_text import loads
from finetune_trainer.data.labels import stored
from finetune_trainer.data.ledger import Cause, Note
from finetune_trainer.data.rows import Row
from finetune_trainer.data.shape import Shape
from finetune_trainer.data.turns import Turn, at, invalid, is_empty, refuse_unread, said, text_of, turns_of, unfolded

# Columns that would change what a row says: what lies in them is not learned, so a row that has them is refused.
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
CALLS = ("tools", "functions", "tool_calls", "function_call")  # rows of format Text hold what a template made of them
FLAGS = {
    "true": True,
    "false": False,
    "1": True,
    "0": False,
    "desirable": True,
    "undesirable": False,
}  # what says whether an answer is desirable


def examples(rows: Iterable[Row], shape: Shape, system_prompt: str | None) -> tuple[list[Example], list[Note]]:
    """Rows as examples, and a note for each row that is none or that was changed.

    Raises StepFailed DatasetRowInvalid, which names the row and what is wrong with it, never its content.
    """
    made: list[Example] = []
    notes: list[Note] = []
    for row in rows:
        with at(row.place, f"read as {shape.format}"):
            example = _example(row, shape)
        if isinstance(example, Cause):
            notes.append(Note(example, row.place, tuple(row.values) if example is Cause.OTHER_COLUMNS else ()))
            continue
        notes += [Note(cause, row.place) for cause in example.changed]
        made.append(_with_system(example, system_prompt))
    return made, notes


def _example(row: Row, shape: Shape) -> Example | Cause:
    if not shape.complete(row.values):
        return Cause.OTHER_COLUMNS
    unread = {*MEDIA, *(() if shape.format is DatasetFormat.TEXT else CALLS)} - {*shape.sources.values()}
    found = {name: row.values[name] for name in unread & row.values.keys() if not is_empty(row.values[name])}
    refuse_unread(row.place, "the row", found, set())
    values = shape.values(row.values)
    example = READ[shape.format](row.place, values)
    return example if isinstance(example, Cause) else _with_context(example, values)


def _with_context(example: Example, values: Mapping[str, Any]) -> Example | Cause:
    """The example after the turns of the row's columns history and system."""
    before = _history(example.place, values.get("history"))
    system = said(example.place, "system", _without_role(values.get("system")))
    if system.strip() and not any(turn.role == "system" for turn in example.turns):
        before = [Turn("system", system), *before]
    elif system.strip() and system.strip() != next(t.content.strip() for t in example.turns if t.role == "system"):
        raise invalid(example.place, "the column system and the conversation's own system turn differ: keep one of them")
    if not before:
        return example
    whole = conversation(example.place, [*before, *example.turns])
    if isinstance(whole, Cause):
        return whole
    plain = example.plain and not any(turn.role != "system" for turn in before)
    return replace(whole, text=example.text, plain=plain, rejected=example.rejected, desirable=example.desirable)


def _history(place: str, value: Any) -> list[Turn]:
    """Earlier turns: pairs of a question and its answer as LLaMA-Factory has them, or turns."""
    if is_empty(value):
        return []
    if isinstance(value, str):
        value = loads(value)
    if isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        asked = [(text_of(place, "history", q), text_of(place, "history", a)) for q, a in value]
        return [turn for q, a in asked for turn in (Turn("user", q), Turn("assistant", a))]
    return turns_of(place, value, "history")


def _without_role(system: Any) -> Any:
    """Gemini's {role: system, parts: [...]} is its parts."""
    return system.get("parts", system) if isinstance(system, dict) else system


def _with_system(example: Example, system_prompt: str | None) -> Example:
    if not system_prompt or not example.turns or example.turns[0].role == "system":
        return example
    return replace(example, turns=(Turn("system", system_prompt), *example.turns))


# ── One reader a format: a row's values → an example, or why it is none ───────────────────────────────────────────────


def _messages(place: str, values: Mapping[str, Any]) -> Example | Cause:
    return _of_column(place, values, "messages")


def _share_gpt(place: str, values: Mapping[str, Any]) -> Example | Cause:
    return _of_column(place, values, "conversations")


def _of_column(place: str, values: Mapping[str, Any], column: str) -> Example | Cause:
    value = values.get(column)
    return Cause.NO_QUESTION if is_empty(value) else conversation(place, turns_of(place, value, column))


def _prompt_completion(place: str, values: Mapping[str, Any]) -> Example | Cause:
    prompt, completion = unfolded(values.get("prompt")), unfolded(values.get("completion"))
    if isinstance(prompt, list):  # TRL's conversational form
        asked = turns_of(place, prompt, "prompt")
        if isinstance(completion, list):
            return conversation(place, [*asked, *turns_of(place, completion, "completion")])
        return conversation(place, [*asked, Turn("assistant", text_of(place, "completion", completion))])
    return answered(place, text_of(place, "prompt", prompt), text_of(place, "completion", completion), keep=True)


def _alpaca(place: str, values: Mapping[str, Any]) -> Example | Cause:
    instruction = text_of(place, "instruction", values.get("instruction")).strip()
    given = text_of(place, "input", values.get("input")).strip()
    prompt = "\n\n".join(part for part in (instruction, given) if part)
    return answered(place, prompt, text_of(place, "output", values.get("output")))


def _classification(place: str, values: Mapping[str, Any]) -> Example | Cause:
    label = text_of(place, "label", values.get("label")).strip()
    return answered(place, text_of(place, "text", values.get("text")), label if stored(label) else "")


def _plain_text(place: str, values: Mapping[str, Any]) -> Example | Cause:
    text = text_of(place, "text", values.get("text"))
    return Example(place, (), text=text, plain=True) if text.strip() else Cause.NO_ANSWER


def _unpaired_preference(place: str, values: Mapping[str, Any]) -> Example | Cause:
    example = _prompt_completion(place, values)
    return example if isinstance(example, Cause) else replace(example, desirable=_desirable(place, values.get("label")))


def _desirable(place: str, label: Any) -> bool:
    known = FLAGS.get(label.strip().lower() if isinstance(label, str) else str(label).lower().removesuffix(".0"))
    if known is None:
        raise invalid(place, "label must be true, of a desirable answer, or false (or 1 and 0, or desirable and undesirable)")
    return known


READ: dict[DatasetFormat, Callable[[str, Mapping[str, Any]], Example | Cause]] = {
    DatasetFormat.MESSAGES: _messages,
    DatasetFormat.SHARE_GPT: _share_gpt,
    DatasetFormat.PROMPT_COMPLETION: _prompt_completion,
    DatasetFormat.ALPACA: _alpaca,
    DatasetFormat.CLASSIFICATION: _classification,
    DatasetFormat.TEXT: _plain_text,
    DatasetFormat.PREFERENCE: preferences.read,
    DatasetFormat.UNPAIRED_PREFERENCE: _unpaired_preference,
}
