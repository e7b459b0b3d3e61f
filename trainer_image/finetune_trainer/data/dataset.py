"""The rows of a run: fetched, split, rendered, and written as train, validation and test files with their facts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from finetune_trainer import digests
from finetune_trainer.contract.dataset import Dataset, DatasetFormat, Split
from finetune_trainer.contract.objectives import OF_PAIRS, Objective
from finetune_trainer.contract.reports import DatasetFacts, ExitCode
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.data import rendered
from finetune_trainer.data.detection import columns_of, detect
from finetune_trainer.data.examples import examples
from finetune_trainer.data.labels import check_seen, worded
from finetune_trainer.data.layout import Choice, choose
from finetune_trainer.data.rendered import SAMPLES, TEST, TRAIN, VALIDATION, Rendered
from finetune_trainer.data.rendering import Renderer, describe
from finetune_trainer.data.rows import READERS, Row, is_data_file, read_rows
from finetune_trainer.data.splits import hold_out, sample
from finetune_trainer.failures import StepFailed
from finetune_trainer.sources.fetch import fetch
from finetune_trainer.sources.source import Source

SHOWN = 2  # rows in samples.jsonl
REPORT_ROWS = 200


@dataclass(frozen=True)
class Splits:
    """Rows of each split before they are rendered, and the format that they have."""

    rows: dict[str, list[Row]]
    format: DatasetFormat
    labels: int | None  # how many there are, in rows with labels
    source_digest: str  # over the bytes of all files that were read


def load(run: RunConfig, scratch: Path, mounts: str) -> Splits:
    """Fetch and split the rows. Raises StepFailed with a reason of dataset sources or rows."""
    dataset = run.dataset
    read: list[str] = []

    def rows_of(uri: str, field: str, choice: Choice) -> list[Row]:
        wanted = tuple(dataset.files) or tuple(f"*{ending}" for ending in READERS)
        source = Source(uri, "Dataset", field, wanted, narrow=None if dataset.files else partial(_narrowed, choice))
        fetched = fetch(source, scratch / field, mounts, run.store.endpoint, run.store.region)
        alone = len(fetched.files) == 1  # a file that the uri names is taken whatever its name is
        files = tuple(f for f in fetched.files if alone or is_data_file(f))
        read.extend(digests.sha256(fetched.folder / name) for name in files)
        rows = read_rows(fetched.folder, files)
        if not rows:
            found = f"{', '.join(files)}" if files else f"no file that ends in {', '.join(READERS)}"
            raise _empty(f"{field}: no rows at {uri} ({found})")
        return rows

    own = Choice("spec.dataset.split", dataset.subset, dataset.split)
    rows = sample(rows_of(dataset.uri, "spec.dataset.uri", own), dataset.max_samples, dataset.test.seed)
    format = detect(rows, dataset.format, dataset.columns)
    check_objective(run.training.objective, format)
    label = _label_column(format, dataset)
    strata = dataset.columns.get("label", "label") if format is DatasetFormat.UNPAIRED_PREFERENCE else label

    def checked(held: list[Row]) -> list[Row]:
        detect(held, format, dataset.columns)
        return _worded(held, label, dataset)

    made = {TRAIN: _worded(rows, label, dataset)}
    for name, split in ((TEST, dataset.test), (VALIDATION, dataset.validation)):
        if split is None:
            made[name] = []
        elif split.split is not None:
            choice = replace(own, field=f"spec.dataset.{name}.split", split=split.split)
            made[name] = checked(rows_of(dataset.uri, choice.field, choice))
        elif split.uri is None:
            made[name], made[TRAIN] = hold_out(made[TRAIN], split, _stratify_by(name, split, rows) or strata)
        else:
            field = f"spec.dataset.{name}.uri"
            made[name] = checked(rows_of(split.uri, field, Choice(field, otherwise=name)))
    if not made[TRAIN]:
        raise _empty(f"spec.dataset: all {len(made[TEST])} rows are held out and none is left to train on: add rows")
    labels = None if label is None else check_seen(made[TRAIN], {name: made[name] for name in (TEST, VALIDATION)}, label)
    return Splits(made, format, labels, digests.over(read))


def check_objective(objective: Objective, format: DatasetFormat) -> None:
    """Raises StepFailed where the rows are not what the objective learns from."""
    if format is DatasetFormat.UNPAIRED_PREFERENCE and objective is not Objective.KTO:
        raise StepFailed(
            ExitCode.BAD_DATA,
            "ObjectiveNeedsOtherRows",
            f"the rows are {format.value}, answers of which some are to be avoided, and spec.training.objective"
            f" {objective.value} can't learn that: set it to KTO, or take rows without the undesirable answers as format"
            " PromptCompletion",
        )
    if objective in OF_PAIRS and format not in (DatasetFormat.PREFERENCE, DatasetFormat.UNPAIRED_PREFERENCE):
        unpaired = ", or prompt, completion and label" if objective is Objective.KTO else ""
        raise StepFailed(
            ExitCode.BAD_DATA,
            "ObjectiveNeedsPreferences",
            f"spec.training.objective {objective.value} learns from pairs of answers, but the rows are {format.value}: set it"
            f" to SFT, or take rows with the columns prompt, chosen and rejected{unpaired}",
        )


def _narrowed(choice: Choice, paths: list[str], card: str) -> list[str]:
    files = [path for path in paths if is_data_file(path)]
    return choose(files, card, choice) if files else []


def _worded(rows: list[Row], label: str | None, dataset: Dataset) -> list[Row]:
    return rows if label is None else worded(rows, label, dataset.labels)


def _stratify_by(name: str, split: Split, rows: Sequence[Row]) -> str | None:
    """Raises StepFailed where the rows lack the column."""
    found = columns_of(rows)
    if split.stratify_by is not None and split.stratify_by not in found:
        raise StepFailed(
            ExitCode.BAD_DATA,
            "DatasetColumnsUnknown",
            f"spec.dataset.{name}.stratifyBy names {split.stratify_by}, which no row has; they have {', '.join(found)}",
        )
    return split.stratify_by


def _label_column(format: DatasetFormat, dataset: Dataset) -> str | None:
    """Column that holds the label, None for rows without. Raises StepFailed where labels are named for other rows."""
    if format is DatasetFormat.CLASSIFICATION:
        return dataset.columns.get("label", "label")
    if dataset.labels:
        raise StepFailed(
            ExitCode.BAD_DATA,
            "DatasetLabelsUnused",
            f"spec.dataset.labels is for rows of format Classification, but these are {format.value}: remove it, or set"
            " spec.dataset.format and spec.dataset.columns: {text: <your text column>, label: <your label column>}",
        )
    return None


def render(run: RunConfig, splits: Splits, tokenizer: Any, folder: Path, report: Callable[[int, int], None]) -> DatasetFacts:
    """Write <split>.jsonl and samples.jsonl to `folder`; rows longer than maxLength are left out and counted.

    Raises StepFailed DatasetRowsTooLong when those are more than maxDroppedFraction.
    """
    renderer = Renderer(tokenizer, run.training.completion_only_loss)
    total = sum(len(rows) for rows in splits.rows.values())
    kept: dict[str, list[Rendered]] = {}
    lengths: list[int] = []
    empty = 0
    for name, rows in splits.rows.items():
        read, without_answer = examples(rows, splits.format, run.dataset.columns, run.dataset.system_prompt)
        empty += without_answer
        kept[name] = []
        for example in read:
            row = renderer.render(example)
            lengths.append(row.length)
            if row.length <= run.training.max_length:
                kept[name].append(row)
            if len(lengths) % REPORT_ROWS == 0:
                report(len(lengths), total)
    _check_lengths(lengths, run.training.max_length, run.dataset.max_dropped_fraction)
    if not kept[TRAIN]:
        raise _empty(
            f"spec.dataset: no row is left to train on: of {total} rows {empty} lack a prompt or an answer and"
            f" {sum(length > run.training.max_length for length in lengths)} are longer than training.maxLength"
        )
    if splits.format is DatasetFormat.UNPAIRED_PREFERENCE:
        scored = [row for row in kept[TEST] if row.desirable]  # nobody is scored by an answer that is to be avoided
        _check_both_kinds(kept[TRAIN], len(kept[TEST]), scored)
        kept[TEST] = scored
    folder.mkdir(parents=True)
    for name, split in kept.items():
        rendered.write(folder, name, split)
    rendered.write_lines(folder, SAMPLES, (describe(tokenizer, row) for row in kept[TRAIN][:SHOWN]))
    return DatasetFacts(
        format=splits.format,
        train_digest=_digest(folder, TRAIN, VALIDATION),
        test_digest=_digest(folder, TEST),
        train_rows=len(kept[TRAIN]),
        validation_rows=len(kept[VALIDATION]),
        test_rows=len(kept[TEST]),
        dropped_rows=empty + sum(length > run.training.max_length for length in lengths),
        train_tokens=sum(row.tokens for row in kept[TRAIN]),
        longest_row_tokens=max(row.length for rows in (kept[TRAIN], kept[VALIDATION]) for row in rows),
        labels=splits.labels,
    )


def _check_both_kinds(train: Sequence[Rendered], held: int, scored: Sequence[Rendered]) -> None:
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


def _check_lengths(lengths: Sequence[int], limit: int, allowed: float) -> None:
    long = sum(length > limit for length in lengths)
    if not long or (long <= allowed * len(lengths) and long < len(lengths)):
        return
    ordered = sorted(lengths)
    enough = ordered[max(0, math.ceil(len(ordered) * (1 - allowed)) - 1)]
    raise StepFailed(
        ExitCode.BAD_DATA,
        "DatasetRowsTooLong",
        f"{long} of {len(lengths)} rows have more than spec.training.maxLength {limit} tokens (the longest {ordered[-1]}):"
        f" set maxLength to {enough} or more to keep within dataset.maxDroppedFraction {allowed:g}, or raise that fraction",
    )


def _digest(folder: Path, *splits: str) -> str:
    return digests.over(digests.sha256(rendered.path(folder, split)) for split in splits)


def _empty(message: str) -> StepFailed:
    return StepFailed(ExitCode.BAD_DATA, "DatasetEmpty", message)


def _one_sided(message: str) -> StepFailed:
    return StepFailed(ExitCode.BAD_DATA, "DatasetOneSided", message)
