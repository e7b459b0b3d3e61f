"""Which format rows have: told by their columns, and where nothing fits, the entry of spec.dataset.columns to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.reports import ExitCode
from finetune_trainer.data.rows import Row
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

NEVER_PROPOSED = (DatasetFormat.TEXT, DatasetFormat.UNPAIRED_PREFERENCE)  # what fits them mostly is something else

# Column names that people use, for the entry that a message proposes.
SYNONYMS = {
    "messages": ("conversation", "chat", "dialog", "dialogue", "turns"),
    "conversations": ("conversation",),
    "prompt": ("question", "query", "instruction", "input", "user", "source", "problem", "prompts"),
    "completion": ("answer", "response", "output", "reply", "target", "chosen", "solution", "completions", "answers"),
    "instruction": ("prompt", "question", "query"),
    "chosen": ("preferred", "accepted", "winner", "response_chosen", "chosen_response"),
    "rejected": ("dispreferred", "loser", "response_rejected", "rejected_response"),
    "output": ("response", "answer", "completion", "target"),
    "label": ("class", "category", "target", "labels", "sentiment"),
    "text": ("content", "document", "body", "sentence", "review"),
}


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
        if names.issuperset(needed) and (known is not DatasetFormat.UNPAIRED_PREFERENCE or _flagged(rows, columns)):
            return known
    raise _unknown(found, "no format fits them", columns, format)


def _flagged(rows: Sequence[Row], columns: Mapping[str, str]) -> bool:
    """Whether each label is true or false; 1 and 0 may as well be classes."""
    column = columns.get("label", "label")
    return all(str(row.values.get(column)).lower() in ("true", "false") for row in rows)


def _unknown(found: Sequence[str], why: str, columns: Mapping[str, str], format: DatasetFormat) -> StepFailed:
    """Propose columns by their usual names, for the format asked for or the first one that they would make complete."""
    formats = [f for f in COLUMNS if f not in NEVER_PROPOSED] if format is DatasetFormat.AUTO else [format]
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
