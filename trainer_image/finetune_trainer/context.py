"""What a stage gets: the run, its step, the artifact store, and where the outputs of earlier steps lie."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from finetune_trainer.contract import pipeline
from finetune_trainer.contract.fields import Model, TrainedModel
from finetune_trainer.contract.pipeline import Step
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Check, DatasetFacts, FitFacts, Manifest, ModelFacts, Progress, StepResult
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.environment import Pod
from finetune_trainer.failures import StepFailed
from finetune_trainer.memory.fit import Teacher, fit_for
from finetune_trainer.ranks.distributed import is_rank
from finetune_trainer.store.entries import Provenance, Store, open_store
from finetune_trainer.store.files import folder_digest

T = TypeVar("T")

MODEL, DATA, TASKS = "model", "data", "tasks"  # the entries that prepare makes
KINDS = {"prepare": DATA}  # every other stage's kind has the stage's name
OTHER_TEMPLATES = ("chat_template.json", "additional_chat_templates")  # where a model may keep more of them
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
    def mounts(self) -> str:
        """The folder below which claims and ConfigMaps are mounted."""
        return self.pod.mounts

    def model(self, which: Model | None = None) -> tuple[ModelFacts, Path]:
        """The base model, or another one, as prepare checked it, and the local folder with its files."""
        which = which or self.run.model
        manifest = self._entry(MODEL, pipeline.model_fingerprint(which))
        mounted = pipeline.model_path(which, self.mounts)
        folder = Path(mounted) if mounted is not None else self._fetch(MODEL, manifest)
        return self._facts(which), self._templated(which, folder, "model")

    def model_without_weights(self, which: Model | None = None) -> Path:
        """A local folder with the model's configuration, tokenizer and chat template, weights or not."""
        which = which or self.run.model
        mounted = pipeline.model_path(which, self.mounts)
        if mounted is not None:
            return self._templated(which, Path(mounted), "config")
        manifest = self._entry(MODEL, pipeline.model_fingerprint(which))
        small = [file for file in manifest.files if not file.path.endswith(".safetensors")]
        folder = self.scratch / "inputs" / "config" / manifest.fingerprint
        return self._templated(which, self.store.objects.fetch(self.store.path(MODEL, manifest), small, folder), "config")

    def templated_folder(self, name: str = "config") -> Path:
        """Where the base model's files lie under the job's own chat template: `config` without its weights, else `model`."""
        return self.scratch / "inputs" / "templated" / name

    def teacher(self) -> Teacher | None:
        """What the memory estimate needs of a distillation's teacher."""
        distillation, facts = self.run.training.distillation, self._teacher_facts()
        if distillation is None or facts is None:
            return None
        return Teacher(facts, self.model_without_weights(distillation.teacher))

    def data(self) -> tuple[DatasetFacts, Path]:
        """Facts of the rendered rows, and the folder with train.jsonl, validation.jsonl, test.jsonl, samples.jsonl."""
        manifest = self._data()
        return _required(manifest.result.dataset), self._fetch(DATA, manifest)

    def prepared(self) -> StepResult:
        """What prepare reports for this run: facts of model and data, and the fit as of now.

        Rows are shared by runs that train on them differently, so the estimate is made anew; prepare alone refuses.
        """
        result = self._data().result
        try:
            folder = self.model_without_weights()
            facts = _required(result.model)
            fit: FitFacts | None = fit_for(self.run, facts, _required(result.dataset), folder, self.teacher())
        except StepFailed:
            fit = result.fit
        return result.model_copy(update={"fit": fit})

    def fingerprint(self, name: str) -> str:
        """Fingerprint of a step of this run by name, or of evaluate/<subject>."""
        return self.fingerprints()[name]

    def fingerprints(self) -> dict[str, str]:
        """All of them."""
        result, teacher = self._data().result, self._teacher_facts()
        model = _required(result.model).model_copy(update={"teacher_digest": teacher.digest if teacher else None})
        dataset = _required(result.dataset).model_copy(update={"tasks_digest": self.tasks_digest()})
        return pipeline.fingerprints(self.run, model, dataset)

    def tasks(self) -> Path:
        """The folder with the files of the run's tasks (scoring/task_files.py), which must have some."""
        return self._fetch(TASKS, self._entry(TASKS, pipeline.tasks_fingerprint(_required(self.run.tasks))))

    def tasks_digest(self) -> str | None:
        """Digest of those files; None where the run has no tasks."""
        if self.run.tasks is None:
            return None
        return folder_digest(self._entry(TASKS, pipeline.tasks_fingerprint(self.run.tasks)).files)

    def output(self, name: str) -> tuple[Manifest, Path]:
        """Manifest and local folder of a finished step that this one needs. Raises StepFailed where it isn't there."""
        kind = kind_of(next(s for s in pipeline.steps(self.run) if s.name == name))
        manifest = self._entry(kind, self.fingerprint(name))
        return manifest, self._fetch(kind, manifest)

    def committed(self) -> StepResult | None:
        """What this step reported when it was finished before; a stage that finds this only reports it again."""
        manifest = self.store.read(kind_of(self.step), self.fingerprint(self.step.name))
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

    def _teacher_facts(self) -> ModelFacts | None:
        distillation = self.run.training.distillation
        if distillation is None:
            return None
        return self._facts(distillation.teacher)

    def _data(self) -> Manifest:
        return self._entry(DATA, pipeline.data_fingerprint(self.run, self._facts(self.run.model)))

    def _facts(self, which: Model) -> ModelFacts:
        """A model's facts as prepare checked it, under the chat template that the job gives it."""
        given = _given_template(which)
        fingerprint = pipeline.model_fingerprint(which) if given is None else pipeline.templated_fingerprint(given)
        return _required(self._entry(MODEL, fingerprint).result.model)

    def _templated(self, which: Model, folder: Path, name: str) -> Path:
        """A model's folder; where the job gives it a chat template, another one of links to both."""
        given, whole = _given_template(which), self.templated_folder(name)
        if given is None or whole.is_dir():
            return folder if given is None else whole
        over = self._fetch(MODEL, self._entry(MODEL, pipeline.templated_fingerprint(given)))
        return lay_over(folder, over, whole)

    def _entry(self, kind: str, fingerprint: str) -> Manifest:
        manifest = self.store.read(kind, fingerprint)
        if manifest is None:
            raise StepFailed(
                StepReason.InputMissing,
                f"{self.store.uri}/{kind}/{fingerprint} is not in the artifact store, or files of it are missing",
            )
        return manifest

    def _fetch(self, kind: str, manifest: Manifest) -> Path:
        """A download appears under its name only when it is whole, so a second call finds it."""
        whole = self.scratch / "inputs" / kind / f"{manifest.fingerprint}-{manifest.prefix}"
        if whole.is_dir():
            return whole
        part = whole.with_name(whole.name + ".part")
        found = self.store.fetch(kind, manifest, part)
        return found if found != part else part.rename(whole)


def lay_over(folder: Path, over: Path, into: Path) -> Path:
    """A folder `into` of links to the entries of `folder`, but for those that `over` has as well and for older templates."""
    part = into.with_name(f"{into.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    entries = {path.name: path for path in folder.iterdir() if path.name not in OTHER_TEMPLATES}
    for name, path in (entries | {path.name: path for path in over.iterdir()}).items():
        (part / name).symlink_to(path.absolute())
    return part.rename(into)


def _given_template(model: Model) -> TrainedModel | None:
    """The model where it comes with a chat template of the job's own."""
    return model if isinstance(model, TrainedModel) and model.chat_template is not None else None


def kind_of(step: Step) -> str:
    """The kind of store entry that a step commits."""
    return KINDS.get(step.stage, step.stage)


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


def _required(value: T | None) -> T:
    if value is None:
        raise StepFailed(
            StepReason.EntryIncomplete,
            "an entry in the artifact store lacks the facts that prepare writes: remove it, so that it is made again",
        )
    return value
