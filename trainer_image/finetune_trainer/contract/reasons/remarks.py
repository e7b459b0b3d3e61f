"""What is unusual about a job that goes on all the same: reasons of status.warnings and of Warning events."""

from __future__ import annotations

from finetune_trainer.contract.reasons import Reason, means


class RemarkReason(Reason):
    """Reason of a remark. Nothing stops by it: what was asked for is done, and may not be what was meant."""

    # ── Of the spec alone ─────────────────────────────────────────────────────────────────────────────────────────────
    FieldUnused = means("a field does nothing beside the others; remove it, or change what the message names")
    # ── Of the spec and the rows, by prepare ──────────────────────────────────────────────────────────────────────────
    FieldUnusedByRows = means("a field does nothing for rows of this format; remove it, or take other rows")
    ColumnUnused = means("nothing is learned from a column that mostly is a part of the question; name it as input")
    BatchAboveRows = means("spec.training.globalBatchSize is above the number of rows: each pass over them is one step")
    RowsNotReached = means("training ends before it has read all rows; raise spec.training.epochs or maxSteps")
    LongWarmup = means("the learning rate rises for half of the steps or more; lower spec.training.warmupRatio")
    HighLearningRate = means("the learning rate is more than a hundred times the customary one; lower it")
    LowLearningRate = means("the learning rate is less than a thousandth of the customary one; raise it")
    RarelyValidated = means("training ends before a validation could decide; lower spec.training.evaluateEverySteps")
    RowsBeyondPositions = means("rows are longer than the model was made for; lower spec.training.maxLength")
    WeightsLeftOut = means("the model's files hold weights that its config.json has no place for; take another configuration")
    PartsUnreached = means("parts of the model that text never reaches stay as they are; take another model if they were meant")
    ExpertsNotQuantized = means("the model has experts, which QLoRA does not quantize; take more memory, or another model")
    WindowLeftOut = means("llama.cpp leaves out the model's sliding window, and rows are longer; lower spec.training.maxLength")
