"""Which format rows have and which column stands for what; where nothing fits, the entry of spec.dataset.columns to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.data.rows import Row
from finetune_trainer.data.turns import ROLES, is_empty
from finetune_trainer.failures import StepFailed

# In the order in which Auto tries them: who has more of the columns comes first.
COLUMNS: dict[DatasetFormat, tuple[str, ...]] = {
    DatasetFormat.PREFERENCE: ("chosen", "rejected"),
    DatasetFormat.MESSAGES: ("messages",),
    DatasetFormat.SHARE_GPT: ("conversations",),
    DatasetFormat.UNPAIRED_PREFERENCE: ("prompt", "completion", "label"),
    DatasetFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    DatasetFormat.ALPACA: ("instruction", "output"),
    DatasetFormat.CLASSIFICATION: ("text", "label"),
    DatasetFormat.TEXT: ("text",),
}
# Columns that rows of a format may have; all but Text may have those of CONTEXT, too.
OPTIONAL = {DatasetFormat.PREFERENCE: ("prompt",), DatasetFormat.ALPACA: ("input",)}
CONTEXT = ("system", "history")

CONTEXT_OF_QUESTION = "context"  # a column that many name so, and the format Alpaca calls input

LOOKED_AT = 100  # rows that tell the format
NEVER_PROPOSED = (DatasetFormat.TEXT, DatasetFormat.UNPAIRED_PREFERENCE)  # what fits them mostly is something else

# Column names that people use, for the entry that a message proposes.
SYNONYMS = {
    "messages": ("conversation", "chat", "dialog", "dialogue", "turns", "contents"),
    "conversations": ("conversation",),
    "prompt": ("question", "query", "instruction", "input", "user", "source", "problem", "prompts", "inputs"),
    "completion": (
        "answer",
        "response",
        "output",
        "reply",
        "target",
        "chosen",
        "solution",
        "completions",
        "answers",
        "targets",
    ),
    "instruction": ("prompt", "question", "query"),
    "chosen": ("preferred", "accepted", "winner", "response_chosen", "chosen_response"),
    "rejected": ("dispreferred", "loser", "response_rejected", "rejected_response"),
    "output": ("response", "answer", "completion", "target"),
    "label": ("class", "category", "target", "labels", "sentiment"),
    "text": ("content", "document", "body", "sentence", "review"),
}
# Names that mean one thing only, so they are taken without being asked for.
ALIASES = {"system": ("system_prompt", "system_message", "systemInstruction", "system_instruction")}
PAIRS = (
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("preferred_output", "non_preferred_output"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("accepted", "rejected"),
    ("winner", "loser"),
    ("response_j", "response_k"),
)
NAMES = frozenset((*(name for names in COLUMNS.values() for name in names), "input", *CONTEXT))
USUAL = NAMES.union(*SYNONYMS.values())
DIALOGUE = "\n\nAssistant:"  # in answers that begin with their prompt
PROMPTS = ("question", "instruction", "query", "input", "conversations", "messages")  # of preferences


@dataclass(frozen=True)
class Shape:
    """A format, and for each of its columns the name that rows give it where that is another."""

    format: DatasetFormat
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def known(self) -> tuple[str, ...]:
        """The format's own names of all columns that it may have."""
        context = () if self.format is DatasetFormat.TEXT else CONTEXT
        return (*COLUMNS[self.format], *OPTIONAL.get(self.format, ()), *context)

    def source(self, name: str) -> str:
        """The column of the files that one of the format's stands for."""
        return self.sources.get(name, name)

    def values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row's cells by the format's names; a column that the row lacks is left out."""
        found = {name: self.source(name) for name in self.known}
        return {name: row[source] for name, source in found.items() if source in row}

    def complete(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has every column that the format needs, empty or not."""
        return all(self.source(name) in row for name in COLUMNS[self.format])

    def unused(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """Columns with something in them that no row is read from."""
        used = {self.source(name) for name in self.known}
        found = (name for row in rows for name, value in row.values.items() if name not in used and not is_empty(value))
        return tuple(dict.fromkeys(found))


def columns_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the columns that the first rows have, in the order of their appearance."""
    return tuple(dict.fromkeys(name for row in rows[:LOOKED_AT] for name in row.values))


def detect(rows: Sequence[Row], format: DatasetFormat, columns: Mapping[str, str], *, flags: bool = False) -> Shape:
    """The format of the rows and their columns. Raises StepFailed DatasetColumnsUnknown with the entry to write.

    `flags` says that a label beside prompt and completion is meant as desirable or not: what is trained learns of nothing else.
    """
    found = columns_of(rows)
    named = {name: _spelled(source, found) for name, source in columns.items()}
    lost = [source for source in named.values() if not any(source in row.values for row in rows)]
    if lost:
        raise _lost(rows, lost, columns, format)
    sources = _with_spelled(named, found)
    if flags and format is DatasetFormat.AUTO and {*found, *sources}.issuperset(COLUMNS[DatasetFormat.UNPAIRED_PREFERENCE]):
        format = DatasetFormat.UNPAIRED_PREFERENCE
    shape = _fitting(rows, format, sources)
    if shape is None:
        missing = [] if format is DatasetFormat.AUTO else [n for n in COLUMNS[format] if n not in {*found, *columns}]
        why = f"format {format.value} needs {' and '.join(missing)}" if missing else "no format fits them"
        raise _unknown(rows, why, columns, format)
    without_use = [name for name in columns if name not in shape.known]
    if without_use:
        raise _refused(
            f"spec.dataset.columns names {', '.join(without_use)}, which rows of format {shape.format} don't have (they have"
            f" {', '.join(shape.known)}): correct that name, or set spec.dataset.format"
        )
    return shape


def _fitting(rows: Sequence[Row], format: DatasetFormat, sources: Mapping[str, str]) -> Shape | None:
    """The first format whose columns are all there; what Auto can't tell otherwise are preferences under names of the hub."""
    found = columns_of(rows)
    names = {*found, *sources}
    for known in COLUMNS if format is DatasetFormat.AUTO else (format,):
        flagged = format is not DatasetFormat.AUTO or known is not DatasetFormat.UNPAIRED_PREFERENCE or _flagged(rows, sources)
        if names.issuperset(COLUMNS[known]) and flagged:
            return Shape(known, _with_prompt(rows, sources) if known is DatasetFormat.PREFERENCE else sources)
    spelled = {_plain(name): name for name in found}
    pair = next((pair for pair in PAIRS if {*pair} <= spelled.keys()), None)
    if pair is None or format not in (DatasetFormat.AUTO, DatasetFormat.PREFERENCE):
        return None
    good, bad = (spelled[name] for name in pair)
    return Shape(DatasetFormat.PREFERENCE, _with_prompt(rows, {"chosen": good, "rejected": bad, **sources}))


def _spelled(source: str, found: Sequence[str]) -> str:
    """The column that is meant where a name differs in capitals or outer white space alone; the name itself else."""
    meant = [name for name in found if _plain(name) == _plain(source)]
    return source if source in found or len(meant) != 1 else meant[0]


def _with_spelled(named: Mapping[str, str], found: Sequence[str]) -> dict[str, str]:
    """Also for the names that formats themselves give their columns, and for those that mean one thing only."""
    sources = dict(named)
    taken = set(named.values())
    for name in dict.fromkeys((*(n for names in COLUMNS.values() for n in names), "input", *CONTEXT)):
        candidates = (_spelled(known, found) for known in (name, *ALIASES.get(name, ())))
        source = next((c for c in candidates if c in found and c not in taken), None)
        if name not in sources and source is not None and source != name:
            sources[name] = source
    return sources


def _with_prompt(rows: Sequence[Row], sources: Mapping[str, str]) -> Mapping[str, str]:
    """Also for the prompt of preferences, where one column alone can be it and the answers don't begin with it."""
    found = columns_of(rows)
    filled = {name for row in rows[:LOOKED_AT] for name, value in row.values.items() if _asks(value)}
    candidates = [name for name in found if _plain(name) in PROMPTS and name in filled]
    chosen = sources.get("chosen", "chosen")
    whole = any(_begins_with_prompt(row.values.get(chosen)) for row in rows[:LOOKED_AT])
    if "prompt" in {*found, *sources} or len(candidates) != 1 or whole:
        return sources
    return {**sources, "prompt": candidates[0]}


def _begins_with_prompt(answer: Any) -> bool:
    """Whether it is a dialogue or a conversation with a question, and no answer alone."""
    if isinstance(answer, str):
        return DIALOGUE in answer
    roles = _roles(answer if isinstance(answer, list) else [answer])
    return not roles or "user" in roles


def _asks(prompt: Any) -> bool:
    """Whether it may be a prompt: something that is no conversation with its answer."""
    return not is_empty(prompt) and not (isinstance(prompt, list) and _roles(prompt)[-1:] == ["assistant"])


def _roles(turns: Sequence[Any]) -> list[str | None]:
    return [ROLES.get(str(turn.get("role") or turn.get("from")).lower()) for turn in turns if isinstance(turn, dict)]


def _plain(name: str) -> str:
    return name.strip().lower()


def _flagged(rows: Sequence[Row], columns: Mapping[str, str]) -> bool:
    """Whether each label is true or false; 1 and 0 may as well be classes."""
    column = columns.get("label", "label")
    return all(str(row.values.get(column)).lower() in ("true", "false") for row in rows)


def _lost(rows: Sequence[Row], lost: Sequence[str], columns: Mapping[str, str], format: DatasetFormat) -> StepFailed:
    """The columns that are named are not there: mistyped, or the entry is the wrong way round."""
    found = columns_of(rows)
    if all(name in found for name in columns) and all(source in NAMES for source in columns.values()):
        turned = ", ".join(f"{source}: {name}" for name, source in columns.items())
        return _refused(
            f"spec.dataset.columns is the wrong way round: it gives your column for each of the format's; write {{{turned}}}"
        )
    kept = {name: source for name, source in columns.items() if source not in lost}
    return _unknown(rows, f"spec.dataset.columns names {', '.join(lost)}, which no row has", kept, format)


def _unknown(rows: Sequence[Row], why: str, columns: Mapping[str, str], format: DatasetFormat) -> StepFailed:
    """Propose columns by their usual names, for the format asked for or the first one that they would make complete."""
    found = columns_of(rows)
    formats = [f for f in COLUMNS if f not in NEVER_PROPOSED] if format is DatasetFormat.AUTO else [format]
    proposals = [_proposal(found, COLUMNS[f]) for f in formats]
    proposal = next((p for p in proposals if p), None)
    if proposal is None:
        why += _between(rows)
        needed = COLUMNS[formats[0]] if len(formats) == 1 else COLUMNS[DatasetFormat.PROMPT_COMPLETION]
        proposal = {name: f"<your {name} column>" for name in needed}
    if {*proposal} == {"prompt", "completion"} and CONTEXT_OF_QUESTION in found and not columns:  # Dolly's, SQuAD's
        question, answer = proposal.values()
        proposal = {"instruction": question, "input": CONTEXT_OF_QUESTION, "output": answer}
    entry = ", ".join(f"{name}: {source}" for name, source in {**columns, **proposal}.items() if name != source)
    listed = ", ".join(found[:20]) + (", …" if len(found) > 20 else "")
    return _refused(f"the rows have the columns {listed or '(none)'}: {why}; write spec.dataset.columns: {{{entry}}}")


def _between(rows: Sequence[Row]) -> str:
    """What may stand between rows and their columns: an object around each, or a first line that is no header."""
    for name, value in rows[0].values.items():
        if isinstance(value, dict) and (found := [key for key in value if key in USUAL]):
            return f" (column {name} holds an object with {', '.join(found)}: make those the columns)"
    is_header = rows[0].place.endswith(" line 2") and USUAL.isdisjoint(map(_plain, rows[0].values))
    return " (the file's first line is taken for its header)" if is_header else ""


def _proposal(found: Sequence[str], needed: Iterable[str]) -> dict[str, str] | None:
    proposal: dict[str, str] = {}
    for name in needed:
        candidates = (name, *SYNONYMS[name])
        source = next((c for c in candidates if c in found and c not in proposal.values()), None)
        if source is None:
            return None
        proposal[name] = source
    return proposal


def _refused(message: str) -> StepFailed:
    return StepFailed(StepReason.DatasetColumnsUnknown, message)
