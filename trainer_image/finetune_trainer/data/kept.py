"""Which rendered rows are kept: none that is too long, none in training that is tested, and nearly all of those that were read.

rows ─► examples ─► rendered ─► not too long ─► not among the held-out rows ─► kept
          └────────────┴──────────────┴─────────────────┴──► notes, by cause; more than maxDroppedFraction stop the job
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from finetune_trainer.contract.dataset import Dataset
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.data.examples import examples
from finetune_trainer.data.ledger import UNLIMITED, Cause, Note, counted, told
from finetune_trainer.data.rendered import TEST, TRAIN, VALIDATION, Rendered
from finetune_trainer.data.rendering import Renderer
from finetune_trainer.data.rows import Row
from finetune_trainer.data.shape import COLUMNS, Shape
from finetune_trainer.failures import StepFailed

REPORT_ROWS = 200
COLUMNS_SHOWN, NAME_SHOWN = 10, 40  # of a row of another shape, and characters of a column's name


@dataclass(frozen=True)
class Placed:
    """A rendered row and where it was read."""

    place: str
    row: Rendered

    @property
    def said(self) -> tuple[str, str]:
        """Prompt and answer as a reader compares them: copies differ in an id or in white space."""
        return " ".join(self.row.prompt.split()), " ".join(self.row.completion.split())


@dataclass
class Kept:
    """Rows of each split, notes on all that were dropped or changed, and the length of every rendered row."""

    rows: dict[str, list[Placed]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    @property
    def apart(self) -> int:
        """How many rendered rows come on top of those that were read."""
        return sum(note.cause is Cause.ANSWER_APART for note in self.notes)


def keep(
    splits: Mapping[str, Sequence[Row]],
    shape: Shape,
    dataset: Dataset,
    renderer: Renderer,
    longest: int,
    report: Callable[[int], None],
) -> Kept:
    """Render the rows of each split, and keep those of at most `longest` tokens."""
    kept = Kept()
    for name, rows in splits.items():
        read, notes = examples(rows, shape, dataset.system_prompt)
        kept.notes += notes
        kept.rows[name] = []
        for example in read:
            made, changes = renderer.rows(example)
            if name == TEST:  # scores are of the last answer alone
                made, changes = made[-1:], tuple(change for change in changes if change is not Cause.ANSWER_APART)
            kept.notes += [Note(change, example.place) for change in changes]
            for row in made:
                kept.lengths.append(row.length)
                if row.length <= longest:
                    kept.rows[name].append(Placed(example.place, row))
                else:
                    kept.notes.append(Note(Cause.TOO_LONG, example.place))
                if len(kept.lengths) % REPORT_ROWS == 0:
                    report(len(kept.lengths))
    return kept


def without_overlaps(kept: Kept) -> Kept:
    """The rows that are left without those of training and validation that say what a test row says, and those of training
    that are in validation."""
    rows, notes = dict(kept.rows), list(kept.notes)
    for held, cause, others in (
        (TEST, Cause.IN_TEST_ROWS, (VALIDATION, TRAIN)),
        (VALIDATION, Cause.IN_VALIDATION_ROWS, (TRAIN,)),
    ):
        said = {placed.said for placed in rows.get(held, ())}
        for other in others:
            notes += [Note(cause, placed.place) for placed in rows.get(other, ()) if placed.said in said]
            rows[other] = [placed for placed in rows.get(other, ()) if placed.said not in said]
    return replace(kept, rows=rows, notes=notes)


def check_lengths(lengths: Sequence[int], limit: int, allowed: float) -> None:
    """Raises StepFailed DatasetRowsTooLong with the length that would be enough."""
    long = sum(length > limit for length in lengths)
    if not long or (long <= allowed * len(lengths) and long < len(lengths)):
        return
    ordered = sorted(lengths)
    enough = ordered[max(0, math.ceil(len(ordered) * (1 - allowed)) - 1)]
    raise StepFailed(
        StepReason.DatasetRowsTooLong,
        f"{long} of {len(lengths)} rows have more than spec.training.maxLength {limit} tokens (the longest {ordered[-1]}):"
        f" set maxLength to {enough} or more to keep within dataset.maxDroppedFraction {allowed:g}, or raise that fraction",
    )


def check_dropped(notes: Sequence[Note], total: int, trained: int, allowed: float, shape: Shape) -> None:
    """Raises StepFailed where none of `total` rows is left to train on, or more than the allowed share were dropped."""
    counts = [count for count in counted(notes, dropped=True) if count.cause not in UNLIMITED]
    dropped = sum(count.rows for count in counts)
    if not trained:
        why = f"none of {total} rows is left to train on: {told(counts) or 'all are held out'}"
        raise StepFailed(StepReason.DatasetEmpty, f"spec.dataset: {why}{_of_two_shapes(notes, shape)}: add or mend rows")
    if dropped > allowed * total:
        raise StepFailed(
            StepReason.DatasetRowsDropped,
            f"spec.dataset: {dropped} of {total} rows can't be used: {told(counts)}{_of_two_shapes(notes, shape)}; mend or"
            f" remove them, or raise spec.dataset.maxDroppedFraction, which is {allowed:g}",
        )


def _of_two_shapes(notes: Iterable[Note], shape: Shape) -> str:
    """What rows are taken for, and what one of another shape has in place of that."""
    other = next((note for note in notes if note.cause is Cause.OTHER_COLUMNS), None)
    if other is None:
        return ""
    needed = " and ".join(shape.source(name) for name in COLUMNS[shape.format])
    shown = [name if len(name) <= NAME_SHOWN else f"{name[: NAME_SHOWN - 1]}…" for name in other.columns[:COLUMNS_SHOWN]]
    found = ", ".join(shown) + (", …" if len(other.columns) > COLUMNS_SHOWN else "")
    return f"; rows are taken for {shape.format}, with {needed}, but {other.place} has {found or 'no column'}"
