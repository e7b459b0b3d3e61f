"""Which run a job is in: a frozen RunConfig, numbered. An edit, or a retry of a failed job, begins the next one.

A new run starts with prepare, which reports the steps whose output exists already: only what changed is done again.
What users wrote is compared, and only when the generation moved: an upgrade of the operator, whose defaults may differ,
disturbs no job, also when the spec is edited elsewhere after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import FineTuneJobStatus, StepState, StepStatus
from finetune_operator.finetunejob.run_config import asked, run_config
from finetune_operator.names import ANNOTATION_RETRY, run_config_map, short_hash
from finetune_trainer.contract.pipeline import TRAIN, Step, digest, steps
from finetune_trainer.contract.run import RunConfig


@dataclass(frozen=True)
class Run:
    id: str  # labels the Jobs; part of every name
    config_map: str
    config: RunConfig
    steps: tuple[Step, ...]

    def step(self, name: str) -> Step | None:
        return next((s for s in self.steps if s.name == name), None)

    def pods(self, step: Step) -> int:
        """How many pods an attempt at this step has."""
        return self.config.devices.nodes if step.stage == TRAIN else 1

    def gpus(self, step: Step) -> int:
        """GPUs of each of its pods: only training spreads over several."""
        gpus = self.config.devices.gpus if step.needs_gpu else 0
        return gpus if step.stage == TRAIN else min(1, gpus)


def begins_another(job: FineTuneJob) -> bool:
    """Whether the spec asks for another run than the one that the status tells of."""
    status = job.status
    edited = job.metadata.generation != status.run_generation
    if status.run is None or (_asked_again(job) and _failed(status)):
        return True
    if status.run_spec is None:  # written by a release that compared what its defaults made of the spec
        return edited and _digest(run_config(job)) != status.run_digest
    return edited and _written(job) != status.run_spec


def current_run(job: FineTuneJob) -> tuple[Run, FineTuneJobStatus]:
    """The run that the spec asks for, and the status it goes on from: the last one, or blank steps for a new run."""
    config, status, generation = run_config(job), job.status, job.metadata.generation
    if begins_another(job):
        status = _new_run(status, _digest(config))
    elif generation != status.run_generation or _asked_again(job):
        status = status.model_copy(update={"steps": [_fresh_budget(s) for s in status.steps]})
    run_id = short_hash(job.metadata.uid, str(status.run_number), status.run_digest or "")
    run = Run(run_id, run_config_map(job.metadata.name, run_id), config, steps(config))
    known = {s.name: s for s in status.steps}
    return run, status.model_copy(
        update={
            "run": run.config_map,
            "run_generation": generation,
            "run_spec": _written(job),
            "retry_token": job.metadata.annotations.get(ANNOTATION_RETRY) or status.retry_token,
            "steps": [known.get(s.name, StepStatus(name=s.name)) for s in run.steps],
        }
    )


def written_spec(job: FineTuneJob) -> str:
    """Hash of the spec but for suspend, which asks for no other result."""
    return digest(job.spec.model_dump(mode="json", exclude_defaults=True, exclude={"suspend"}))


def _written(job: FineTuneJob) -> str:
    return digest(asked(job).model_dump(mode="json", exclude_defaults=True, exclude={"namespace", "name"}))


def _digest(config: RunConfig) -> str:
    return digest(config.model_dump(mode="json"))


def _asked_again(job: FineTuneJob) -> bool:
    token = job.metadata.annotations.get(ANNOTATION_RETRY)
    return token is not None and token != job.status.retry_token


def _failed(status: FineTuneJobStatus) -> bool:
    return any(c.type == "Failed" and c.status == "True" for c in status.conditions)


def _new_run(status: FineTuneJobStatus, found: str) -> FineTuneJobStatus:
    """Facts of the last run are dropped: prepare reports again what holds. What was spent, is served and was told stays."""
    return FineTuneJobStatus(
        observed_generation=status.observed_generation,
        conditions=status.conditions,
        run_number=status.run_number + 1,
        run_digest=found,
        report=status.report,
        gpu_seconds=status.gpu_seconds,
        counted=status.counted,
        holding=status.holding,
        serving=status.serving,
        retry_token=status.retry_token,
    )


def _fresh_budget(step: StepStatus) -> StepStatus:
    state = StepState.PENDING if step.state is StepState.FAILED else step.state
    return step.model_copy(update={"state": state, "retries": 0})
