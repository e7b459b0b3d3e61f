"""What prepare remarks on: settings that train something, but hardly what was meant, now that the rows are counted.

They end up in status.warnings and as Warning events. What can't be trained at all is refused elsewhere (combinations).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.formats import ArtifactFormat
from finetune_trainer.contract.reasons.remarks import RemarkReason
from finetune_trainer.contract.reports import DatasetFacts, Remark
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Method, Training

# Columns, as people name them, that mostly are a part of the question.
PARTS_OF_QUESTIONS = frozenset(("context", "input", "passage", "document", "article", "schema", "choices", "options", "hint"))
ROLES = frozenset(("role", "from", "speaker", "author"))  # columns that say who speaks
HIGH_RATE = 100  # times the customary one
LOW_RATE = 1000  # the customary one is so many times that


def remarks(
    run: RunConfig, rows: DatasetFacts, positions: int | None, window: int | None = None, experts: float = 0
) -> tuple[Remark, ...]:
    """A sentence each, which names the field and the remedy.

    `positions` is how many tokens the model was made for, `window` how many its layers look back where llama.cpp's look back
    to the beginning, `experts` which share of its parameters its experts have.
    """
    said = (
        *_of_formats(run, rows.format),
        *_of_columns(rows),
        *_of_labels(rows),
        *_of_batches(run.training, rows),
        *_of_validations(run.training, rows),
        *_of_rates(run.training),
        *_of_positions(rows, positions),
        *_of_windows(run, rows, window),
        *_of_experts(run.training, experts),
    )
    return tuple(Remark(reason=reason, message=message) for reason, message in said)


_Said = Iterator[tuple[RemarkReason, str]]


def lines(training: Training, rows: DatasetFacts) -> int:
    """What a pass takes in, in globalBatchSize's units: rows, or at least as many packed ones."""
    return math.ceil(rows.train_tokens / training.max_length) if training.packing else rows.train_rows


def optimizer_steps(training: Training, rows: DatasetFacts) -> int:
    """Steps in all; the last one of a pass takes what is left."""
    a_pass = math.ceil(lines(training, rows) / training.global_batch_size)
    return training.max_steps or max(1, math.ceil(training.passes * a_pass))


def _of_formats(run: RunConfig, format: DatasetFormat) -> _Said:
    """Text is learned as it stands, without turns, question or answer."""
    if format is not DatasetFormat.TEXT:
        return
    given = {
        "spec.dataset.systemPrompt": run.dataset.system_prompt is not None,
        "spec.model.chatTemplate": run.model.chat_template is not None,
        "spec.training.completionOnlyLoss": not run.training.completion_only_loss,
    }
    for field in (field for field, is_given in given.items() if is_given):
        yield RemarkReason.FieldUnusedByRows, f"{field} does nothing: rows of format Text are learned as they stand; remove it"


def _of_columns(rows: DatasetFacts) -> _Said:
    """Most columns that nothing is learned from are ids and the like; these mostly are not."""
    for name in (name for name in rows.unused_columns or () if name.lower() in PARTS_OF_QUESTIONS):
        yield (
            RemarkReason.ColumnUnused,
            f"nothing is learned from the column {name}; if it is a part of the question, write spec.dataset.columns:"
            f" {{instruction: <your question column>, input: {name}, output: <your answer column>}}",
        )


def _of_labels(rows: DatasetFacts) -> _Said:
    """Columns beside a text that say whether it is to be learned, or who says it."""
    unused = {name.lower() for name in rows.unused_columns or ()}
    if rows.format is DatasetFormat.PROMPT_COMPLETION and "label" in unused:
        yield (
            RemarkReason.ColumnUnused,
            "nothing is learned from the column label; if it says which answers are to be avoided, they are learned all the"
            " same: set spec.training.objective to KTO, or remove those rows",
        )
    if rows.format is DatasetFormat.TEXT and (found := sorted(unused & ROLES)):
        yield (
            RemarkReason.ColumnUnused,
            f"nothing is learned from the column {found[0]}; if each row is one turn of a conversation, write the turns of one"
            " into a row of format Messages",
        )


def _of_batches(training: Training, rows: DatasetFacts) -> _Said:
    batch, held, steps = training.global_batch_size, lines(training, rows), optimizer_steps(training, rows)
    unit = "packed rows" if training.packing else "rows"
    if batch > held:
        yield (
            RemarkReason.BatchAboveRows,
            f"spec.training.globalBatchSize is {batch}, but there are {held} {unit} to train on, so that each pass over them is"
            f" one optimizer step ({steps} in all); lower it to {max(1, held // 2)} or less",
        )
    if steps * batch < held:
        field = "epochs" if training.max_steps is None else "maxSteps"
        asked = training.max_steps or f"{training.passes:g}"
        yield (
            RemarkReason.RowsNotReached,
            f"spec.training.{field} is {asked}: training ends after {steps * batch} of {held} {unit}, in {steps}"
            " optimizer steps; raise it if all of them are meant",
        )


def _of_validations(training: Training, rows: DatasetFacts) -> _Said:
    every, steps = training.evaluate_every_steps, optimizer_steps(training, rows)
    if every is None:
        return
    if every > steps:
        yield (
            RemarkReason.RarelyValidated,
            f"spec.training.evaluateEverySteps is {every}, but there are {steps} optimizer steps in all, so nothing is"
            " validated before the end; lower it",
        )
    elif training.early_stopping is not None and every * (training.early_stopping.patience + 1) >= steps:
        yield (
            RemarkReason.RarelyValidated,
            f"spec.training.earlyStopping can't end this training: {steps} optimizer steps hold"
            f" {steps // every} validations, and it waits for {training.early_stopping.patience} after the best one; lower"
            " patience or evaluateEverySteps",
        )


def _of_rates(training: Training) -> _Said:
    if training.schedule != "constant" and training.warmup_ratio >= 0.5:
        yield (
            RemarkReason.LongWarmup,
            f"spec.training.warmupRatio is {training.warmup_ratio:g}: the learning rate rises for that share of the steps, and"
            " is at its peak for few or none; 0.03 to 0.1 are usual",
        )
    customary = training.learning.full_rate if training.method is Method.FULL else training.learning.rate
    if training.peak_rate > HIGH_RATE * customary * (1 + 1e-9):
        yield (
            RemarkReason.HighLearningRate,
            f"spec.training.learningRate is {training.peak_rate:g}; {customary:g} is customary for {training.objective.value}"
            f" with method {training.method.value}, and with so much more a model mostly forgets: lower it",
        )
    if training.peak_rate * LOW_RATE * (1 + 1e-9) < customary:
        yield (
            RemarkReason.LowLearningRate,
            f"spec.training.learningRate is {training.peak_rate:g}; {customary:g} is customary for {training.objective.value}"
            f" with method {training.method.value}, and with so much less a model hardly learns: raise it",
        )


def _of_positions(rows: DatasetFacts, positions: int | None) -> _Said:
    if positions is not None and rows.longest_row_tokens > positions:
        yield (
            RemarkReason.RowsBeyondPositions,
            f"the longest row has {rows.longest_row_tokens} tokens, and the model was made for {positions}: what lies beyond is"
            f" learned badly, if at all; set spec.training.maxLength to {positions}, or take a model for longer texts",
        )


def _of_windows(run: RunConfig, rows: DatasetFacts, window: int | None) -> _Said:
    files = [artifact.name for artifact in run.artifacts if artifact.format is ArtifactFormat.GGUF]
    if window is not None and files and rows.longest_row_tokens > window:
        yield (
            RemarkReason.WindowLeftOut,
            f"the longest row has {rows.longest_row_tokens} tokens, and the model looks back {window}; llama.cpp lets it look"
            f" back to the beginning, so that {', '.join(files)} may answer worse than the merged model beyond {window}"
            f" tokens: set spec.training.maxLength to {window}, or take another format",
        )


def _of_experts(training: Training, share: float) -> _Said:
    """Experts are tensors of three dimensions, which bitsandbytes leaves as they are."""
    if training.method is Method.QLORA and share > 0:
        yield (
            RemarkReason.ExpertsNotQuantized,
            f"spec.training.method is QLoRA, but {share:.0%} of the model's parameters are those of its experts, which are not"
            " quantized: they take as much memory as with LoRA, and the estimate counts them so; if it does not fit, take more"
            " memory, or a model without experts",
        )
