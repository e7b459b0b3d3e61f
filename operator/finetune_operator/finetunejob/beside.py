"""Steps of one job side by side: those that wait for nothing of each other, where several nodes can mount what they share.

All steps mount the same: the artifact store and the models. In a bucket there is nothing to mount; a claim must be one that
several nodes mount at once. Only stages on copies of what is done are meant, artifacts and their scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from finetune_operator.api.finetunejob_status import DONE, StepState, StepStatus
from finetune_operator.claims import CLAIM
from finetune_operator.decision import Ref, pause_after
from finetune_operator.finetunejob.case import Case
from finetune_operator.finetunejob.record import step_record
from finetune_operator.finetunejob.references import READ, WRITTEN, first_missing
from finetune_operator.meta import Object, seconds_since
from finetune_trainer.contract.pipeline import PREPARE, Step, models
from finetune_trainer.contract.places import claim_of
from finetune_trainer.contract.run import RunConfig

STAGES = ("quantize", "evaluate")


def next_beside(case: Case) -> Step | None:
    """The step that is started next beside those at work; None where none may be."""
    at_work = [s for s in case.run.steps if step_record(case.status, s.name).state is StepState.RUNNING]
    if any(step.stage not in STAGES for step in at_work) or _is_crowded(case):
        return None
    ready = (s for s in case.run.steps if s.stage in STAGES and _is_ready(case, s))
    on_gpus = any(step.needs_gpu for step in at_work)  # GPUs are held by one step at a time: what they cost is counted so
    step = next((s for s in ready if not (s.needs_gpu and on_gpus)), None)
    if step is None or not _is_shared(case.run.config, case.named) or first_missing(case.wanted, case.named):
        return None
    return step


def _is_crowded(case: Case) -> bool:
    """Whether a pod is at work of which no step knows: it goes first."""
    known = {step.job_uid for step in case.status.steps if step.state is StepState.RUNNING}
    return any(pod.job_uid not in known for pod in case.world.live_pods)


def _is_ready(case: Case, step: Step) -> bool:
    record = step_record(case.status, step.name)
    needed = (step_record(case.status, name).state for name in (PREPARE, *step.needs))
    return record.state is StepState.PENDING and pause_left(record, case.now) <= 0 and all(state in DONE for state in needed)


def _is_shared(run: RunConfig, named: Mapping[Ref, Object | None]) -> bool:
    """Whether pods on several nodes can mount all that each step does."""
    wanted = [(run.store.uri, WRITTEN), *((model.uri, READ) for model in models(run))]
    claims = ((claim, modes) for uri, modes in wanted if (claim := claim_of(uri)) is not None)
    return all(set(modes) & set(_modes(named.get(Ref(CLAIM, claim)))) for claim, modes in claims)


def _modes(claim: Object | None) -> list[str]:
    return list((claim or {}).get("spec", {}).get("accessModes", ()))


def pause_left(record: StepStatus, now: datetime) -> float:
    """Seconds until the next attempt. The first loss of a pod costs none."""
    if record.finished_at is None or record.attempt == 0 or (record.retries == 0 and record.attempt == 1):
        return 0.0
    return pause_after(record.attempt) - seconds_since(record.finished_at, now)
