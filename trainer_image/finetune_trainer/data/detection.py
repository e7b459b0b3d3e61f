"""Which format rows have and which column stands for what; where nothing fits, the entry of spec.dataset.columns to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.data.rows import Row
from finetune_trainer.data.shape import COLUMNS, CONTEXT, Shape, columns_of
from finetune_trainer.data.turns import ROLES, is_empty
from finetune_trainer.failures import StepFailed

CONTEXT_OF_QUESTION = "context"  # a column that many name so, and the format Alpaca calls input

LOOKED_AT = 100  # rows of preferences that tell which column is the prompt
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


def detect(rows: Sequence[Row], format: DatasetFormat, columns: Mapping[str, str], *, flags: bool = False) -> Shape:
    """The format of most rows and their columns. Raises StepFailed DatasetColumnsUnknown with the entry to write.

    `flags` says that a label beside prompt and completion is meant as desirable or not: what is trained learns of nothing else.
    """
    found = columns_of(rows)
    named = {name: _spelled(source, found) for name, source in columns.items()}
    lost = [source for source in named.values() if not any(source in row.values for row in rows)]
    if lost:
        raise _lost(rows, lost, columns, format)
    offered = _offered(rows, format, _with_spelled(named, found), flags=flags)
    if not offered:
        missing = [] if format is DatasetFormat.AUTO else [n for n in COLUMNS[format] if n not in {*found, *columns}]
        why = f"format {format.value} needs {' and '.join(missing)}" if missing else "no format fits them"
        raise _unknown(rows, why, columns, format)
    shape = _of_most(rows, offered)
    without_use = [name for name in columns if name not in shape.known]
    if without_use:
        raise _refused(
            f"spec.dataset.columns names {', '.join(without_use)}, which rows of format {shape.format} don't have (they have"
            f" {', '.join(shape.known)}): correct that name, or set spec.dataset.format"
        )
    return shape


def _of_most(rows: Sequence[Row], offered: Sequence[Shape]) -> Shape:
    """The first shape that more than half of the rows have, else the one that most have. The others are counted, or refused."""
    counts = [sum(shape.is_of(row.values) for row in rows) for shape in offered] if len(offered) > 1 else [len(rows)]
    more_than_half = (shape for shape, count in zip(offered, counts, strict=True) if 2 * count > len(rows))
    return next(more_than_half, offered[counts.index(max(counts))])


def _offered(rows: Sequence[Row], format: DatasetFormat, sources: Mapping[str, str], *, flags: bool) -> list[Shape]:
    """What rows may be, in the order in which Auto tries it: formats whose columns are all there, then preferences under names
    of the hub.
    """
    is_auto, found = format is DatasetFormat.AUTO, columns_of(rows)
    names = {*found, *sources}
    tried = (*([DatasetFormat.UNPAIRED_PREFERENCE] if flags else []), *COLUMNS) if is_auto else (format,)
    shapes = [Shape(known, sources) for known in dict.fromkeys(tried) if names.issuperset(COLUMNS[known])]
    spelled = {_plain(name): name for name in found}
    pair = next((pair for pair in PAIRS if {*pair} <= spelled.keys()), None)
    if pair is not None and (is_auto or format is DatasetFormat.PREFERENCE):
        chosen, rejected = (spelled[name] for name in pair)
        shapes.append(Shape(DatasetFormat.PREFERENCE, {"chosen": chosen, "rejected": rejected, **sources}))
    if is_auto and not flags:
        shapes = [s for s in shapes if s.format is not DatasetFormat.UNPAIRED_PREFERENCE or _flagged(rows, s)]
    return [_with_prompt(rows, shape) if shape.format is DatasetFormat.PREFERENCE else shape for shape in shapes]


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


def _with_prompt(rows: Sequence[Row], shape: Shape) -> Shape:
    """Preferences with their prompt, too, where one column alone can be it and the answers don't begin with it."""
    own = [row for row in rows if shape.is_of(row.values)][:LOOKED_AT]
    filled = dict.fromkeys(name for row in own for name, value in row.values.items() if _asks(value))
    candidates = [name for name in filled if _plain(name) in PROMPTS]
    whole = any(_begins_with_prompt(row.values[shape.source("chosen")]) for row in own)
    if "prompt" in {*columns_of(own), *shape.sources} or len(candidates) != 1 or whole:
        return shape
    return Shape(shape.format, {**shape.sources, "prompt": candidates[0]})


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


def _flagged(rows: Sequence[Row], shape: Shape) -> bool:
    """Whether each label is true or false; 1 and 0 may as well be classes."""
    labels = [str(row.values[shape.source("label")]).lower() for row in rows if shape.complete(row.values)]
    return bool(labels) and {*labels} <= {"true", "false"}


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
