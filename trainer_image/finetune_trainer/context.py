"""One attempt of one step: what it is, where it works, what it reports and keeps. What it reads is in inputs.py."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.contract import pipeline
from finetune_trainer.contract.pipeline import Step
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Check, Manifest, Progress, StepResult
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.environment import Pod
from finetune_trainer.failures import StepFailed
from finetune_trainer.inputs import Inputs, kind_of
from finetune_trainer.ranks.distributed import is_rank
from finetune_trainer.store.entries import Provenance, Store, open_store

RECORDED = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "lm-eval",
    "vllm",
    "finetune-operator",
)


@dataclass(frozen=True)
class Context:
    """One attempt of one step. `scratch` is the only folder to write to; `attempt` names what it commits."""

    run: RunConfig
    step: Step
    store: Store
    scratch: Path
    pod: Pod
    attempt: str
    report: Callable[[Progress], None]

    @property
    def inputs(self) -> Inputs:
        """What the step reads."""
        return Inputs(self.run, self.store, self.scratch / "inputs", self.pod.mounts)

    def committed(self) -> StepResult | None:
        """What this step reported when it was finished before; a stage that finds this only reports it again."""
        manifest = self.store.read(kind_of(self.step), self.inputs.fingerprint(self.step.name))
        return None if manifest is None else manifest.result

    def commit(self, folder: Path, result: StepResult, inputs: Mapping[str, str], checks: Iterable[Check] = ()) -> StepResult:
        """Keep `folder` as this step's output; returns the result that counts, with the artifact's path and digest."""
        return self.keep(kind_of(self.step), folder, result, inputs, checks).result

    def keep(
        self, kind: str, folder: Path, result: StepResult, inputs: Mapping[str, str], checks: Iterable[Check] = ()
    ) -> Manifest:
        """Keep `folder` as the entry of this kind under the result's fingerprint; returns the manifest that counts."""
        made = Provenance(self.step.name, dict(inputs), self.versions(), tuple(checks))
        return self.store.commit(kind, self.attempt, folder, result, made)

    def versions(self) -> dict[str, str]:
        """Versions of what makes the output, for the manifest."""
        found = {"python": platform.python_version()}
        for name in RECORDED:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return found

    def progress(self, activity: str, step: int = 0, total: int = 0) -> None:
        """Report what goes on now."""
        self.report(Progress(step_name=self.step.name, activity=activity, step=step, total=total))


def open_context(step_name: str, run: RunConfig, pod: Pod, report: Callable[[Progress], None]) -> Context:
    """The context of this process, from the run and what the pod was told."""
    steps = {step.name: step for step in pipeline.steps(run)}
    if step_name not in steps:
        raise StepFailed(StepReason.StepUnknown, f"{step_name} is no step of this run; its steps are {', '.join(steps)}")
    return Context(
        run=run,
        step=steps[step_name],
        store=open_store(run.store, pod.mounts),
        scratch=scratch_folder(pod, step_name),
        pod=pod,
        attempt=f"{pod.attempt}-{(pod.uid or uuid.uuid4().hex).replace('-', '')[:12]}",
        report=report,
    )


def scratch_folder(pod: Pod, step_name: str) -> Path:
    """The folder that a step works in: empty at its start, and shared by the ranks of a node."""
    scratch = pod.scratch / step_name
    if not is_rank():
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    return scratch


def read_run(path: Path) -> RunConfig:
    """The frozen configuration of this run. Raises StepFailed RunConfigInvalid with the first thing wrong with it."""
    from pydantic import ValidationError

    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StepFailed(StepReason.RunConfigInvalid, f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise StepFailed(StepReason.RunConfigInvalid, f"{path}: {where}: {first['msg']}") from error
