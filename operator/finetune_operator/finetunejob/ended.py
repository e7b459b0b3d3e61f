"""Jobs of attempts that have ended go, with their pods, once what they reported is in the status: etcd is no archive.

They stay for a while, for `kubectl logs`. The attempt that a job failed by stays until the job is edited or tried again:
its log is what a person looks for.
"""

from __future__ import annotations

from collections.abc import Iterator

from finetune_operator.api.finetunejob_status import FineTuneJobStatus, StepState
from finetune_operator.finetunejob.case import Case
from finetune_operator.finetunejob.observed import Attempt, State
from finetune_operator.meta import seconds_since

SOON = 1.0  # seconds; after the pass that writes the status


def overdue(case: Case, seconds: float) -> tuple[Attempt, ...]:
    """Those whose time is over."""
    return tuple(a for a, left in _ended(case, case.job.status, seconds) if left <= 0)


def next_removal(case: Case, told: FineTuneJobStatus, seconds: float) -> float | None:
    """Seconds until the next one's time is over, once the status that is `told` is written and what is overdue is gone."""
    goes = overdue(case, seconds)
    return min((max(left, SOON) for attempt, left in _ended(case, told, seconds) if attempt not in goes), default=None)


def _ended(case: Case, told: FineTuneJobStatus, seconds: float) -> Iterator[tuple[Attempt, float]]:
    """Ended attempts of this run of which that status tells, and the seconds that each has left."""
    for attempt in case.world.attempts:
        if attempt.run != case.run.id or attempt.state is State.ACTIVE or attempt.deleting or attempt.finished_at is None:
            continue
        if _is_told(case, told, attempt) and not _is_evidence(told, attempt):
            yield attempt, seconds - seconds_since(attempt.finished_at, case.now)


def _is_told(case: Case, told: FineTuneJobStatus, attempt: Attempt) -> bool:
    record = next((s for s in told.steps if s.name == attempt.step), None)
    if record is None or told.run != case.run.config_map or record.attempt < attempt.number:
        return False
    return record.state is not StepState.RUNNING or record.attempt > attempt.number


def _is_evidence(told: FineTuneJobStatus, attempt: Attempt) -> bool:
    record = next(s for s in told.steps if s.name == attempt.step)
    return record.state is StepState.FAILED and record.attempt == attempt.number
