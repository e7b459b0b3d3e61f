"""Which run a job is in: a frozen RunConfig, numbered. An edit, or a retry of a failed job, begins the next one.

A new run starts with prepare, which reports the steps whose output exists already: only what changed is done again.
The configuration is compared only when the generation moved, so an upgrade of the operator, whose defaults may differ,
disturbs no job.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import FineTuneJobStatus, StepState, StepStatus
from finetune_operator.finetunejob.run_config import run_config
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


def current_run(job: FineTuneJob) -> tuple[Run, FineTuneJobStatus]:
    """The run that the spec asks for, and the status it goes on from: the last one, or blank steps for a new run."""
    config = run_config(job)
    found = digest(config.model_dump(mode="json"))
    generation, token = job.metadata.generation, job.metadata.annotations.get(ANNOTATION_RETRY)
    status = job.status
    edited = generation != status.run_generation
    asked_again = token is not None and token != status.retry_token
    if status.run is None or (edited and found != status.run_digest) or (asked_again and _failed(status)):
        status = _new_run(status, found)
    elif edited or asked_again:
        status = status.model_copy(update={"steps": [_fresh_budget(s) for s in status.steps]})
    run_id = short_hash(job.metadata.uid, str(status.run_number), status.run_digest or "")
    run = Run(run_id, run_config_map(job.metadata.name, run_id), config, steps(config))
    known = {s.name: s for s in status.steps}
    return run, status.model_copy(
        update={
            "run": run.config_map,
            "run_generation": generation,
            "retry_token": token or status.retry_token,
            "steps": [known.get(s.name, StepStatus(name=s.name)) for s in run.steps],
        }
    )


def _failed(status: FineTuneJobStatus) -> bool:
    return any(c.type == "Failed" and c.status == "True" for c in status.conditions)


def _new_run(status: FineTuneJobStatus, found: str) -> FineTuneJobStatus:
    """Facts of the last run are dropped: prepare reports again what holds. What was spent and what is served stay."""
    return FineTuneJobStatus(
        observed_generation=status.observed_generation,
        conditions=status.conditions,
        run_number=status.run_number + 1,
        run_digest=found,
        gpu_seconds=status.gpu_seconds,
        serving=status.serving,
        retry_token=status.retry_token,
    )


def _fresh_budget(step: StepStatus) -> StepStatus:
    state = StepState.PENDING if step.state is StepState.FAILED else step.state
    return step.model_copy(update={"state": state, "retries": 0})
