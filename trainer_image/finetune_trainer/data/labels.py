"""Labels of classification rows: stored values become words, and no label is tested that was not trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.data.rows import Row
from finetune_trainer.failures import StepFailed

SHOWN = 40  # characters of a label, and how many labels, that a message may quote


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
                f" (it names {_listed(words)}); add it there"
            )
        made.append(replace(row, values={**row.values, column: words[label]}) if label else row)
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
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _unknown(message: str) -> StepFailed:
    return StepFailed(StepReason.DatasetLabelUnknown, message)


def _listed(labels: Iterable[str]) -> str:
    found = sorted(label for label in labels if label)
    return ", ".join(_quoted(label) for label in found[:SHOWN]) + (", …" if len(found) > SHOWN else "")


def _quoted(label: str) -> str:
    return label if len(label) <= SHOWN else f"{label[: SHOWN - 1]}…"
