"""Labels of classification rows: stored values become words, and no label is tested that was not trained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.data.csv_rows import MISSING
from finetune_trainer.data.rows import Row
from finetune_trainer.failures import StepFailed

WHOLE, DECIMAL = re.compile(r"-?\d+(\.0+)?"), re.compile(r"(-?\d+)\.0+")
SHOWN = 40  # characters of a label, and how many labels, that a message may quote


def are_whole(rows: Sequence[Row], column: str) -> bool:
    """Whether all labels are whole numbers, so that 1.0 is pandas' way to write 1 in a column with empty cells."""
    return all(WHOLE.fullmatch(label) for row in rows if (label := stored(row.values.get(column))))


def numbered(rows: Sequence[Row], column: str) -> list[Row]:
    """The rows with 1.0 and "1.0" as 1."""
    decimal = (DECIMAL.fullmatch(str(row.values.get(column)).strip()) for row in rows)
    return [row if found is None else _with(row, column, int(found[1])) for row, found in zip(rows, decimal, strict=True)]


def worded(rows: Sequence[Row], column: str, words: Mapping[str, str]) -> list[Row]:
    """The rows with their labels as words of spec.dataset.labels; as they are stored where it is empty.

    Raises StepFailed DatasetLabelUnknown for a label that spec.dataset.labels doesn't name. Rows without a label stay so.
    """
    if not words:
        return list(rows)
    made = []
    for row in rows:
        label = stored(row.values.get(column))
        if label and label not in words:
            raise _unknown(
                f"spec.dataset: {row.place} has the label {_quoted(label)}, which spec.dataset.labels does not name"
                f" (it names {_listed(words)}); add it there{_in_quotes(label, words)}"
            )
        made.append(_with(row, column, words[label]) if label else row)
    return made


def check_seen(trained: Sequence[Row], held: Mapping[str, Sequence[Row]], column: str) -> int:
    """How many labels the training rows have.

    Raises StepFailed DatasetLabelUnknown where a row of a held-out split has a label that no training row has.
    """
    known = {stored(row.values.get(column)) for row in trained} - {""}
    for split, rows in held.items():
        for row in rows:
            label = stored(row.values.get(column))
            if label and label not in known:
                raise _unknown(
                    f"spec.dataset.{split}: {row.place} has the label {_quoted(label)}, which no training row has (they"
                    f" have {_listed(known)}); add training rows with it, or take it out of the {split} rows"
                )
    return len(known)


def stored(value: Any) -> str:
    """A label as spec.dataset.labels spells it: 1 for 1 and 1.0, true for True, "" for none."""
    if value is None or value != value:  # pandas' NaN
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    found = str(value).strip()
    return "" if found in MISSING else found


def _in_quotes(label: str, words: Mapping[str, str]) -> str:
    """What may have become of a key that was written without them."""
    is_lost = label.lower() in ("no", "yes", "off", "on", "n", "y") and {"true", "false"} & words.keys()
    return f', in quotes, as {label} without them is true or false to YAML: {{"{label}": …}}' if is_lost else ""


def _with(row: Row, column: str, label: str | int) -> Row:
    return replace(row, values={**row.values, column: label})


def _unknown(message: str) -> StepFailed:
    return StepFailed(StepReason.DatasetLabelUnknown, message)


def _listed(labels: Iterable[str]) -> str:
    found = sorted(label for label in labels if label)
    return ", ".join(_quoted(label) for label in found[:SHOWN]) + (", …" if len(found) > SHOWN else "")


def _quoted(label: str) -> str:
    return label if len(label) <= SHOWN else f"{label[: SHOWN - 1]}…"
