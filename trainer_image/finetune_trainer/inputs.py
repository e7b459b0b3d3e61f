"""What a step reads: model, rows and tasks as prepare made them, and the outputs of earlier steps, in local folders."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finetune_trainer.contract import pipeline
from finetune_trainer.contract.fields import Model, TrainedModel
from finetune_trainer.contract.formats import SAFETENSORS
from finetune_trainer.contract.pipeline import Step
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import ArtifactFacts, DatasetFacts, FitFacts, Manifest, ModelFacts, StepResult
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.memory.fit import Teacher, fit_for
from finetune_trainer.memory.shape import cached_numbers_of, plain_attention_of, positions_of
from finetune_trainer.store.entries import Store
from finetune_trainer.store.files import folder_digest

T = TypeVar("T")

MODEL, DATA, TASKS = "model", "data", "tasks"  # the entries that prepare makes
FINDINGS = "findings"  # what it found out about a model, for whoever trains it or has trained it
CURVE = "curve"  # the losses of a training, beside what came of it
KINDS = {"prepare": DATA}  # every other stage's kind has the stage's name
OTHER_TEMPLATES = ("chat_template.json", "additional_chat_templates")  # where a model may keep more of them


@dataclass(frozen=True)
class Inputs:
    """The store's entries of one run. What is downloaded lies below `folder`, a mounted model where it is mounted."""

    run: RunConfig
    store: Store
    folder: Path
    mounts: str

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
        folder = self.folder / "config" / manifest.fingerprint
        return self._templated(which, self.store.objects.fetch(self.store.path(MODEL, manifest), small, folder), "config")

    def base(self) -> ArtifactFacts | None:
        """The base model as it was fetched, for those who serve it with adapters over it. A mounted one has its own uri."""
        if pipeline.model_path(self.run.model, self.mounts) is not None:
            return None
        manifest = self._entry(MODEL, pipeline.model_fingerprint(self.run.model))
        made = ArtifactFacts.made(pipeline.BASE, SAFETENSORS)
        size, digest = sum(file.bytes for file in manifest.files), folder_digest(manifest.files)
        return made.model_copy(update={"path": self.store.path(MODEL, manifest), "digest": digest, "bytes": size})

    def begin_of(self, which: Model, file: str, length: int) -> bytes:
        """The first bytes of a model's file, which may be too large to fetch for them."""
        mounted = pipeline.model_path(which, self.mounts)
        if mounted is None:
            entry = self._entry(MODEL, pipeline.model_fingerprint(which))
            return self.store.objects.begin(f"{self.store.path(MODEL, entry)}/{file}", length)
        with (Path(mounted) / file).open("rb") as stream:
            return stream.read(length)

    def weights_of(self, which: Model) -> list[str]:
        """Names of the files of weights that lie beside a model's configuration."""
        mounted = pipeline.model_path(which, self.mounts)
        if mounted is not None:
            return sorted(path.name for path in Path(mounted).glob("*.safetensors"))
        entry = self._entry(MODEL, pipeline.model_fingerprint(which))
        return sorted(file.path for file in entry.files if file.path.endswith(".safetensors"))

    def templated_folder(self, name: str = "config") -> Path:
        """Where the base model's files lie under the job's own chat template: `config` without its weights, else `model`."""
        return self.folder / "templated" / name

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

    def of_data(self, name: str) -> Path:
        """A local folder with one file of the rendered rows alone."""
        manifest = self._data()
        files = [file for file in manifest.files if file.path == name]
        return self.store.objects.fetch(self.store.path(DATA, manifest), files, self.folder / name)

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
        result = self._data().result
        model = self.with_teacher(_required(result.model))
        dataset = _required(result.dataset).model_copy(update={"tasks_digest": self.tasks_digest()})
        return pipeline.fingerprints(self.run, model, dataset)

    def with_teacher(self, facts: ModelFacts) -> ModelFacts:
        """The base model's facts with all that fingerprints depend on besides, its attention and a distillation's teacher, and
        with what its context takes of whoever serves it."""
        teacher = self._teacher_facts()
        own, *others = map(self._configuration, pipeline.models(self.run))
        plain = [n for config in (own, *others) if (n := plain_attention_of(config)) is not None]
        known = {"teacher_digest": teacher.digest if teacher else None, "plain_attention_tokens": min(plain, default=None)}
        return facts.model_copy(update={**known, "cached_numbers": cached_numbers_of(own), "context_tokens": positions_of(own)})

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

    def _configuration(self, which: Model) -> Mapping[str, Any]:
        """A model's config.json. Raises StepFailed InputMissing where a mounted model has gone."""
        mounted = pipeline.model_path(which, self.mounts)
        if mounted is None:
            entry = self._entry(MODEL, pipeline.model_fingerprint(which))
            return _parsed(self.store.objects.read(f"{self.store.path(MODEL, entry)}/config.json"), which)
        file = Path(mounted) / "config.json"
        return _parsed(file.read_bytes() if file.is_file() else None, which)

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
        whole = self.folder / kind / f"{manifest.fingerprint}-{manifest.prefix}"
        if whole.is_dir():
            return whole
        part = whole.with_name(whole.name + ".part")
        found = self.store.fetch(kind, manifest, part)
        return found if found != part else part.rename(whole)


def kind_of(step: Step) -> str:
    """The kind of store entry that a step commits."""
    return KINDS.get(step.stage, step.stage)


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


def _parsed(text: bytes | None, model: Model) -> Mapping[str, Any]:
    if text is None:
        raise StepFailed(StepReason.InputMissing, f"{model.uri} has no config.json any more")
    found: Mapping[str, Any] = json.loads(text)
    return found


def _required(value: T | None) -> T:
    if value is None:
        raise StepFailed(
            StepReason.EntryIncomplete,
            "an entry in the artifact store lacks the facts that prepare writes: remove it, so that it is made again",
        )
    return value
