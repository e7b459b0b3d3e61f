"""A place to fetch from, and what was found there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from finetune_trainer import environment
from finetune_trainer.contract import places
from finetune_trainer.contract.places import Place
from finetune_trainer.contract.pod import Owner
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.environment import Access
from finetune_trainer.failures import StepFailed, first_line

CARD = "README.md"
NOT_FOUND = {
    "Model": StepReason.ModelNotFound,
    "Dataset": StepReason.DatasetNotFound,
    "TaskFiles": StepReason.TaskFilesNotFound,
}
DENIED = {
    "Model": StepReason.ModelAccessDenied,
    "Dataset": StepReason.DatasetAccessDenied,
    "TaskFiles": StepReason.TaskFilesAccessDenied,
}
OWNERS = {"spec.model.uri": Owner.MODEL, "spec.training.distillation.teacher.uri": Owner.TEACHER}  # by field; else of the rows


@dataclass(frozen=True)
class Listing:
    """What lies at a place: the wanted files, the paths of all files, and how the text of a small one is read."""

    wanted: list[str]
    paths: list[str]
    read: Callable[[str], str]


@dataclass(frozen=True)
class Source:
    """What is fetched and how to speak of it: subject is Model, Dataset or TaskFiles, field what names it in the spec."""

    uri: str
    subject: str
    field: str
    wanted: tuple[str, ...]  # glob patterns of paths below the uri
    deep: bool = True  # whether folders below it are looked into
    check: Callable[[Listing], None] = lambda _: None  # refuses by StepFailed, before anything is downloaded
    narrow: Callable[[list[str], str], list[str]] | None = None  # of the wanted paths, by what README.md says

    @property
    def place(self) -> Place:
        return places.of(self.uri)

    def chosen(self, paths: Iterable[str], read: Callable[[str], str]) -> list[str]:
        """Those of the paths that are wanted, sorted; `read` gives the text of a small file among them.

        Raises StepFailed where the source's check refuses them.
        """
        found = list(paths)
        reached = [p for p in found if self.deep or "/" not in p]
        names = sorted(p for p in reached if any(matches(p, pattern) for pattern in self.wanted))
        if self.narrow is not None and names:
            names = self.narrow(names, read(CARD) if CARD in reached else "")
        self.check(Listing(names, found, read))
        return names

    @property
    def secret(self) -> str:
        """The field that names the Secret with the credentials."""
        return f"{self.field.removesuffix('.uri')}.secretRef" if self.subject == "Model" else "spec.dataset.secretRef"

    @property
    def access(self) -> Access:
        """How it is reached, with which credentials."""
        return environment.access(OWNERS.get(self.field, Owner.DATASET), self.place)

    def not_found(self, detail: str) -> StepFailed:
        return StepFailed(NOT_FOUND[self.subject], f"{self.field}: {detail}")

    def denied(self, detail: str) -> StepFailed:
        return StepFailed(DENIED[self.subject], f"{self.field}: {detail}")

    def unavailable(self, error: BaseException) -> StepFailed:
        text = f"{self.uri} did not answer: {first_line(error)}"
        return StepFailed(StepReason.SourceUnavailable, text)


@dataclass(frozen=True)
class Fetched:
    """Files of a source on this machine: paths are relative to `folder`."""

    folder: Path
    files: tuple[str, ...]
    revision: str  # the hub's commit; "" where the source has none


def matches(path: str, pattern: str) -> bool:
    """Whether a relative path fits a glob pattern; without a slash the pattern stands for a name in any folder."""
    if "/" not in pattern:
        return fnmatch(path.rpartition("/")[2], pattern)
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)
