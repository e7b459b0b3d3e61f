"""A FineTuneJob in one pass: all that its decision rests on, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import FineTuneJobStatus, GateVerdict
from finetune_operator.decision import Ref
from finetune_operator.finetunejob.observed import Attempt, World
from finetune_operator.finetunejob.references import Reference
from finetune_operator.finetunejob.runs import Run
from finetune_operator.meta import Object
from finetune_trainer.contract.pipeline import Step
from finetune_trainer.contract.reasons.operator import OperatorReason

DOING = {
    "prepare": OperatorReason.Preparing,
    "train": OperatorReason.Training,
    "merge": OperatorReason.Merging,
    "quantize": OperatorReason.Quantizing,
    "evaluate": OperatorReason.Evaluating,
    "publish": OperatorReason.Publishing,
    "clean": OperatorReason.Cleaning,
}
LOOK_AGAIN = 5.0  # seconds; for what may change without an event that we watch
PROGRESS_LOOK_AGAIN = 30.0  # so that a silent pod's progress is shown as stale in time


class Standing(Enum):
    """How the job stands; each is one row of the status contract."""

    WORKING = "Working"  # goes on by itself
    STALLED = "Stalled"  # waits for a person, and goes on by itself then
    FAILED = "Failed"  # ended
    SUCCEEDED = "Succeeded"  # ended


@dataclass(frozen=True)
class Start:
    step: Step
    attempt: int


@dataclass(frozen=True)
class Outlook:
    standing: Standing
    stage: str
    reason: str
    message: str
    start: Start | None = None
    stop: tuple[Attempt, ...] = ()
    suspend: tuple[Attempt, ...] = ()
    resume: Attempt | None = None
    again: str | None = None  # a step that is started anew once its Job is stopped, though nothing failed
    hand_over: Object | None = None
    requeue_after: float | None = None


@dataclass(frozen=True)
class Case:
    """All that a decision rests on."""

    job: FineTuneJob
    run: Run
    status: FineTuneJobStatus  # with all that has ended read into it
    world: World
    named: Mapping[Ref, Object | None]
    wanted: tuple[Reference, ...]
    verdicts: tuple[GateVerdict, ...]
    refusals: tuple[str, ...]  # what of the spec can't be run, a sentence each
    queues: Mapping[str, str]  # by step: the LocalQueue that the spec, or its profile, names for it now
    now: datetime
