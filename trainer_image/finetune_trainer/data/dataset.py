"""The rows of a run: fetched, split, rendered, and written as train, validation and test files with their facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_trainer import digests
from finetune_trainer.contract.dataset import Dataset, DatasetFormat, Split
from finetune_trainer.contract.objectives import OBJECTIVES, Objective
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import DatasetFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.data import rendered
from finetune_trainer.data.detection import detect
from finetune_trainer.data.kept import Kept, check_dropped, check_lengths, keep, without_overlaps
from finetune_trainer.data.labels import are_whole, check_seen, numbered, worded
from finetune_trainer.data.ledger import Cause, Note, counted
from finetune_trainer.data.rendered import SAMPLES, TEST, TRAIN, VALIDATION, Rendered
from finetune_trainer.data.rendering import Renderer, describe
from finetune_trainer.data.rows import Row
from finetune_trainer.data.shape import Shape, columns_of
from finetune_trainer.data.source_files import SourceFiles
from finetune_trainer.data.splits import hold_out, said, sample
from finetune_trainer.failures import StepFailed, writable

SHOWN = 2  # rows in samples.jsonl
NAMES_SHOWN, NAME_SHOWN = 6, 40  # names of columns or files in a report, and characters of one


@dataclass(frozen=True)
class Splits:
    """Rows of each split before they are rendered, and what they look like."""

    rows: dict[str, list[Row]]
    shape: Shape
    labels: int | None  # how many there are, in rows with labels
    source_digest: str  # over the bytes of all files that were read
    notes: tuple[Note, ...] = ()
    unused: tuple[str, ...] = ()  # columns that nothing is learned from
    unread: tuple[str, ...] = ()  # files that were not read

    @property
    def format(self) -> DatasetFormat:
        return self.shape.format


def load(run: RunConfig, scratch: Path, mounts: str) -> Splits:
    """Fetch and split the rows. Raises StepFailed with a reason of dataset sources or rows."""
    dataset, source = run.dataset, SourceFiles(run, scratch, mounts)
    rows = sample(source.rows(source.own), dataset.max_samples, dataset.test.seed)
    flags = DatasetFormat.UNPAIRED_PREFERENCE in OBJECTIVES[run.training.objective].rows
    shape = detect(rows, dataset.format, dataset.columns, flags=flags)
    check_objective(run.training.objective, shape.format)
    label = _label_column(shape, dataset)
    held = {name: _alike(source.rows(place), shape, dataset) for name, place in source.held.items()}
    if label is not None:
        rows, held = _worded(rows, held, label, dataset)
    strata = shape.source("label") if shape.format is DatasetFormat.UNPAIRED_PREFERENCE else label
    made = {TRAIN: rows, TEST: held.get(TEST, []), VALIDATION: held.get(VALIDATION, [])}
    for name, split in ((TEST, dataset.test), (VALIDATION, dataset.validation)):
        if split is not None and name not in held:
            column = _stratify_by(name, split, rows) or strata
            made[name], made[TRAIN] = hold_out(made[TRAIN], split, column, said(shape))
    if not made[TRAIN]:
        raise _empty(f"spec.dataset: all {len(made[TEST])} rows are held out and none is left to train on: add rows")
    labels = None if label is None else check_seen(made[TRAIN], {name: made[name] for name in (TEST, VALIDATION)}, label)
    unused = shape.unused(row for name in made for row in made[name])
    return Splits(made, shape, labels, source.digest, tuple(source.notes), unused, source.left)


def _alike(rows: list[Row], shape: Shape, dataset: Dataset) -> list[Row]:
    """Held-out rows of their own with the columns named as in the rows to train on."""
    own = detect(rows, shape.format, dataset.columns)
    names = {own.source(name): shape.source(name) for name in shape.known if own.source(name) != shape.source(name)}
    if not names:
        return rows
    return [replace(row, values={names.get(name, name): value for name, value in row.values.items()}) for row in rows]


def _worded(
    rows: list[Row], held: dict[str, list[Row]], label: str, dataset: Dataset
) -> tuple[list[Row], dict[str, list[Row]]]:
    """All rows with their labels as the words that are learned."""
    if are_whole([*rows, *(row for found in held.values() for row in found)], label):
        rows, held = numbered(rows, label), {name: numbered(found, label) for name, found in held.items()}
    words = dataset.labels
    return worded(rows, label, words), {name: worded(found, label, words) for name, found in held.items()}


def check_test_rows(facts: DatasetFacts) -> None:
    """Raises StepFailed NoTestRows where nothing could be scored once everything is trained."""
    if not facts.test_rows:
        raise StepFailed(
            StepReason.NoTestRows,
            "spec.dataset.test leaves no rows to score on, and a model is published and served by its scores: give it a"
            " fraction above 0 (of two rows at least), a split or a uri",
        )


def check_objective(objective: Objective, format: DatasetFormat) -> None:
    """Raises StepFailed where the rows are not what the objective learns from."""
    learns_from = OBJECTIVES[objective].rows
    if format in learns_from:
        return
    others = " or ".join(name for name, learning in OBJECTIVES.items() if format in learning.rows)
    if format is DatasetFormat.UNPAIRED_PREFERENCE:
        raise StepFailed(
            StepReason.ObjectiveNeedsOtherRows,
            f"the rows are {format.value}, answers of which some are to be avoided, and spec.training.objective"
            f" {objective.value} can't learn that: set it to {others}, or take rows without the undesirable answers as format"
            " PromptCompletion",
        )
    unpaired = ", or prompt, completion and label" if DatasetFormat.UNPAIRED_PREFERENCE in learns_from else ""
    raise StepFailed(
        StepReason.ObjectiveNeedsPreferences,
        f"spec.training.objective {objective.value} learns from pairs of answers, but the rows are {format.value}: set it"
        f" to SFT, or take rows with the columns prompt, chosen and rejected{unpaired}",
    )


def _stratify_by(name: str, split: Split, rows: Sequence[Row]) -> str | None:
    """Raises StepFailed where the rows lack the column."""
    found = columns_of(rows)
    if split.stratify_by is not None and split.stratify_by not in found:
        raise StepFailed(
            StepReason.DatasetColumnsUnknown,
            f"spec.dataset.{name}.stratifyBy names {split.stratify_by}, which no row has; they have {', '.join(found)}",
        )
    return split.stratify_by


def _label_column(shape: Shape, dataset: Dataset) -> str | None:
    """Column that holds the label, None for rows without. Raises StepFailed where labels are named for other rows."""
    if shape.format is DatasetFormat.CLASSIFICATION:
        return shape.source("label")
    if dataset.labels:
        raise StepFailed(
            StepReason.DatasetLabelsUnused,
            f"spec.dataset.labels is for rows of format Classification, but these are {shape.format}: remove it, or set"
            " spec.dataset.format and spec.dataset.columns: {text: <your text column>, label: <your label column>}",
        )
    return None


def render(run: RunConfig, splits: Splits, tokenizer: Any, folder: Path, report: Callable[[int, int], None]) -> DatasetFacts:
    """Write <split>.jsonl and samples.jsonl to `folder`, and count what was dropped or changed by its cause.

    Raises StepFailed DatasetRowsTooLong, DatasetRowsDropped or DatasetEmpty where too much was dropped.
    """
    renderer = Renderer(tokenizer, run.training.completion_only_loss)
    total = sum(len(rows) for rows in splits.rows.values())
    limit, allowed = run.training.max_length, run.dataset.max_dropped_fraction
    kept = keep(splits.rows, splits.shape, run.dataset, renderer, limit, lambda rows: report(rows, total))
    kept.notes += splits.notes
    check_lengths(kept.lengths, limit, allowed)
    if splits.format is DatasetFormat.UNPAIRED_PREFERENCE:
        _keep_desirable(kept)
    kept = without_overlaps(kept)
    check_dropped(kept.notes, total + kept.apart, len(kept.rows[TRAIN]), allowed, splits.shape)
    rows = {name: [placed.row for placed in found] for name, found in kept.rows.items()}
    folder.mkdir(parents=True)
    for name, split in rows.items():
        rendered.write(folder, name, split)
    rendered.write_lines(folder, SAMPLES, (describe(tokenizer, row) for row in rows[TRAIN][:SHOWN]))
    dropped = counted(kept.notes, dropped=True)
    return DatasetFacts(
        format=splits.format,
        train_digest=_digest(folder, TRAIN, VALIDATION),
        test_digest=_digest(folder, TEST),
        train_rows=len(rows[TRAIN]),
        validation_rows=len(rows[VALIDATION]),
        test_rows=len(rows[TEST]),
        dropped_rows=sum(count.rows for count in dropped),
        train_tokens=sum(row.tokens for row in rows[TRAIN]),
        longest_row_tokens=max(row.length for name in (TRAIN, VALIDATION) for row in rows[name]),
        labels=splits.labels,
        rows=total + sum(note.cause is Cause.REPEATED_HEADER for note in splits.notes),
        dropped=dropped or None,
        changed=counted(kept.notes, dropped=False) or None,
        unused_columns=_some(splits.unused) or None,
        unread_files=_some(splits.unread) or None,
    )


def _some(names: Sequence[str]) -> tuple[str, ...]:
    """The first names, cut: a termination message holds 4096 bytes in all."""
    written = map(writable, names[:NAMES_SHOWN])
    shown = tuple(name if len(name) <= NAME_SHOWN else f"{name[: NAME_SHOWN - 1]}…" for name in written)
    return shown if len(names) <= NAMES_SHOWN else (*shown, f"and {len(names) - NAMES_SHOWN} more")


def _keep_desirable(kept: Kept) -> None:
    """Test rows are those with desirable answers: nobody is scored by an answer that is to be avoided."""
    scored = [placed for placed in kept.rows[TEST] if placed.row.desirable]
    if kept.rows[TRAIN]:
        _check_both_kinds([placed.row for placed in kept.rows[TRAIN]], len(kept.rows[TEST]), len(scored))
    kept.notes += [Note(Cause.UNDESIRABLE_TEST_ROW, placed.place) for placed in kept.rows[TEST] if not placed.row.desirable]
    kept.rows[TEST] = scored


def _check_both_kinds(train: Sequence[Rendered], held: int, scored: int) -> None:
    """Raises StepFailed where there is nothing to tell apart, or no answer among the `held` test rows to score by."""
    kinds = {row.desirable for row in train}
    if len(kinds) == 1:
        raise _one_sided(
            f"spec.dataset: all {len(train)} rows to train on have the label {str(kinds.pop()).lower()}, but KTO learns to tell"
            " desirable answers from undesirable ones: add rows of the other kind"
        )
    if held and not scored:
        raise _one_sided(
            f"spec.dataset.test: none of the {held} rows has the label true, but scores are computed on desirable answers:"
            " hold out more rows"
        )


def _digest(folder: Path, *splits: str) -> str:
    return digests.over(digests.sha256(rendered.path(folder, split)) for split in splits)


def _empty(message: str) -> StepFailed:
    return StepFailed(StepReason.DatasetEmpty, message)


def _one_sided(message: str) -> StepFailed:
    return StepFailed(StepReason.DatasetOneSided, message)
