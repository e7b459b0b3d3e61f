"""From rows of any known format to examples: turns of a conversation, or plain text; and the split by seed.

    Messages          {messages: [{role, content}]}
    PromptCompletion  {prompt, completion}
    Alpaca            {instruction, input?, output}
    ShareGPT          {conversations: [{from, value}]}     human, gpt, … become user, assistant
    Text              {text}
    Classification    {text, label}

spec.dataset.columns gives the columns of a row these names first: {prompt: question}.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.contract import ExitCode
from finetune_trainer.dataset_fields import DatasetFormat, Split
from finetune_trainer.failures import StepFailed
from finetune_trainer.rows import Row

DEFAULT_FRACTION = 0.1  # of a split that names neither rows of its own nor a fraction

# In the order in which Auto tries them: who has more of the columns comes first.
COLUMNS: dict[DatasetFormat, tuple[str, ...]] = {
    DatasetFormat.MESSAGES: ("messages",),
    DatasetFormat.SHARE_GPT: ("conversations",),
    DatasetFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    DatasetFormat.ALPACA: ("instruction", "output"),
    DatasetFormat.CLASSIFICATION: ("text", "label"),
    DatasetFormat.TEXT: ("text",),
}
OPTIONAL = {DatasetFormat.ALPACA: ("input",)}

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

# Column names that people use, for the entry that a message proposes.
SYNONYMS = {
    "messages": ("conversation", "chat", "dialog", "dialogue", "turns"),
    "conversations": ("conversation",),
    "prompt": ("question", "query", "instruction", "input", "user", "source", "problem", "prompts"),
    "completion": ("answer", "response", "output", "reply", "target", "chosen", "solution", "completions", "answers"),
    "instruction": ("prompt", "question", "query"),
    "output": ("response", "answer", "completion", "target"),
    "label": ("class", "category", "target", "labels", "sentiment"),
    "text": ("content", "document", "body", "sentence", "review"),
}


@dataclass(frozen=True)
class Turn:
    role: str  # system, user, assistant or tool
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the assistant's answer, or (turns empty) plain text.

    `plain` says that a model without a chat template may see prompt and answer as they are, one after the other.
    """

    place: str
    turns: tuple[Turn, ...]
    text: str = ""
    plain: bool = False


def columns_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the columns that the first rows have, in the order of their appearance."""
    return tuple(dict.fromkeys(name for row in rows[:100] for name in row.values))


def detect(rows: Sequence[Row], format: DatasetFormat, columns: Mapping[str, str]) -> DatasetFormat:
    """The format of the rows. Raises StepFailed DatasetColumnsUnknown with the entry to write."""
    found = columns_of(rows)
    lost = [source for source in columns.values() if source not in found]
    if lost:
        raise _unknown(found, f"spec.dataset.columns names {', '.join(lost)}, which no row has", columns, format)
    names = {*found, *columns}
    if format is not DatasetFormat.AUTO:
        missing = [c for c in COLUMNS[format] if c not in names]
        if missing:
            raise _unknown(found, f"format {format.value} needs {' and '.join(missing)}", columns, format)
        return format
    for known, needed in COLUMNS.items():
        if names.issuperset(needed):
            return known
    raise _unknown(found, "no format fits them", columns, format)


def _unknown(found: Sequence[str], why: str, columns: Mapping[str, str], format: DatasetFormat) -> StepFailed:
    """Propose columns by their usual names, for the format asked for or the first one that they would make complete."""
    formats = [f for f in COLUMNS if f is not DatasetFormat.TEXT] if format is DatasetFormat.AUTO else [format]
    proposals = [_proposal(found, COLUMNS[f]) for f in formats]
    proposal = next((p for p in proposals if p), None)
    if proposal is None:
        needed = COLUMNS[formats[0]] if len(formats) == 1 else COLUMNS[DatasetFormat.PROMPT_COMPLETION]
        proposal = {name: f"<your {name} column>" for name in needed}
    entry = ", ".join(f"{name}: {source}" for name, source in {**columns, **proposal}.items() if name != source)
    listed = ", ".join(found[:20]) + (", …" if len(found) > 20 else "")
    return StepFailed(
        ExitCode.BAD_DATA,
        "DatasetColumnsUnknown",
        f"the rows have the columns {listed or '(none)'}: {why}; write spec.dataset.columns: {{{entry}}}",
    )


def _proposal(found: Sequence[str], needed: Iterable[str]) -> dict[str, str] | None:
    proposal: dict[str, str] = {}
    for name in needed:
        candidates = (name, *SYNONYMS[name])
        source = next((c for c in candidates if c in found and c not in proposal.values()), None)
        if source is None:
            return None
        proposal[name] = source
    return proposal


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
    return Example(example.place, (Turn("system", system_prompt), *example.turns), plain=example.plain)


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


READ: dict[DatasetFormat, Callable[[str, Mapping[str, Any]], Example | None]] = {
    DatasetFormat.MESSAGES: _messages,
    DatasetFormat.SHARE_GPT: _share_gpt,
    DatasetFormat.PROMPT_COMPLETION: _prompt_completion,
    DatasetFormat.ALPACA: _alpaca,
    DatasetFormat.CLASSIFICATION: _classification,
    DatasetFormat.TEXT: _plain_text,
}


def _answer(place: str, prompt: str, answer: str, keep: bool = False) -> Example | None:
    """One question and its answer. `keep`: the prompt's own white space parts it from the answer in plain text."""
    if not prompt.strip() or not answer.strip():
        return None
    text = prompt if keep else prompt.strip() + "\n\n"
    return Example(place, (Turn("user", prompt), Turn("assistant", answer)), text=text, plain=True)


def _conversation(place: str, value: Any, column: str) -> Example | None:
    if isinstance(value, str):  # csv and some exports hold the list as JSON text
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise invalid(place, f"{column} is text but not a JSON list of turns") from error
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise invalid(place, f"{column} must be a list of turns, each with a role and its content")
    turns = [_turn(place, column, number, turn) for number, turn in enumerate(value, start=1)]
    while turns and turns[-1].role != "assistant":
        turns.pop()  # nothing to learn after the last answer
    if not any(turn.role == "user" for turn in turns) or not turns or not turns[-1].content.strip():
        return None
    return Example(place, tuple(turns))


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


# ── Splits ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """An order that depends on seed and content only: the same on any machine, and equal rows lie side by side."""

    def key(row: Row) -> bytes:
        content = json.dumps(row.values, sort_keys=True, default=str)
        return hashlib.sha256(f"{seed}:{content}".encode()).digest()

    return sorted(rows, key=key)


def hold_out(rows: Sequence[Row], split: Split) -> tuple[list[Row], list[Row]]:
    """(held out, the rest). A fraction above 0 holds out one row at least; rows equal to a held-out one go with it,
    unless that leaves none."""
    fraction = DEFAULT_FRACTION if split.fraction is None else split.fraction
    ordered = shuffled(rows, split.seed)
    count = max(1, round(len(rows) * fraction)) if fraction > 0 and len(rows) > 1 else 0
    end = count
    while 0 < end < len(ordered) and ordered[end].values == ordered[end - 1].values:
        end += 1
    held = {id(row) for row in ordered[: count if end == len(ordered) else end]}
    return [r for r in rows if id(r) in held], [r for r in rows if id(r) not in held]


def sample(rows: Sequence[Row], count: int | None, seed: int) -> list[Row]:
    """At most `count` rows, chosen by the seed, in their first order."""
    if count is None or count >= len(rows):
        return list(rows)
    chosen = {id(row) for row in shuffled(rows, seed)[:count]}
    return [row for row in rows if id(row) in chosen]
