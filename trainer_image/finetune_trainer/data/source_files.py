"""The files of a dataset's sources: which are read, which are not, and the digest over the bytes of those that are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from finetune_trainer import digests
from finetune_trainer.contract.dataset import Dataset
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.data.decoding import COMPRESSED
from finetune_trainer.data.layout import Choice, choose
from finetune_trainer.data.ledger import Note
from finetune_trainer.data.rendered import TEST, VALIDATION
from finetune_trainer.data.rows import NOT_DATA, READERS, TEXT, Row, is_data_file, kind_of, read_rows
from finetune_trainer.failures import StepFailed
from finetune_trainer.sources.fetch import fetch
from finetune_trainer.sources.source import Source

ABOUT = ("readme*", "licen[cs]e*", "notice*", "requirements*", ".*")  # files that tell of a dataset


@dataclass(frozen=True)
class Place:
    """Rows of a source: what its uri is, which field says so, and which of its subsets and splits is meant."""

    uri: str
    field: str
    choice: Choice


class SourceFiles:
    """The files of one run's dataset, as far as they were fetched."""

    def __init__(self, run: RunConfig, scratch: Path, mounts: str) -> None:
        self._run, self._scratch, self._mounts = run, scratch, mounts
        self._digests: list[str] = []
        self._plain: list[str] = []
        self._seen: set[str] = set()
        self._unread: list[str] = []
        self.notes: list[Note] = []

    @property
    def own(self) -> Place:
        """The rows of dataset.uri, to train on and to hold out from."""
        dataset = self._run.dataset
        return Place(dataset.uri, "spec.dataset.uri", Choice("spec.dataset.split", dataset.subset, dataset.split))

    @property
    def held(self) -> dict[str, Place]:
        """Test and validation rows that have a uri or a split of their own."""
        return _held(self._run.dataset, self.own)

    @property
    def digest(self) -> str:
        """Digest over the bytes of all files that were read."""
        return digests.over(self._digests)

    @property
    def earlier_digest(self) -> str:
        """The same as releases before took it, which passed over compressed files of a folder."""
        return digests.over(self._plain)

    @property
    def left(self) -> tuple[str, ...]:
        """Files that nothing was read from."""
        return tuple(name for name in dict.fromkeys(self._unread) if name not in self._seen)

    def rows(self, place: Place) -> list[Row]:
        """The rows of a place, which must have some. Raises StepFailed DatasetEmpty or DatasetUnreadable."""
        folder, files = self.fetch(place)
        read = read_rows(folder, files, place.choice.split)
        self.notes += read.notes
        self._seen |= {*read.chosen}
        self._unread += read.unread
        if not read.rows:
            found = f"{', '.join(files)}" if files else f"no file that ends in {', '.join(READERS)}"
            raise StepFailed(StepReason.DatasetEmpty, f"{place.field}: no rows at {place.uri} ({found})")
        return read.rows

    def fetch(self, place: Place) -> tuple[Path, tuple[str, ...]]:
        """The folder and the files of a place, whose digests are noted."""
        asked, store = self._run.dataset.files, self._run.store
        narrow = None if asked else partial(self._narrowed, place.choice)
        source = Source(place.uri, "Dataset", place.field, tuple(asked) or ("*",), narrow=narrow)
        fetched = fetch(source, self._scratch / place.field, self._mounts, store.endpoint, store.region)
        alone = len(fetched.files) == 1  # a file that the uri names is taken whatever its name is
        files = tuple(f for f in fetched.files if alone or is_data_file(f) or kind_of(f) == TEXT)
        for name in files:
            self._digests.append(digests.sha256(fetched.folder / name))
            self._plain += self._digests[-1:] if alone or not name.lower().endswith(COMPRESSED) else []
        self._seen |= {*files}
        self._unread += [name for name in fetched.files if name not in files]
        return fetched.folder, files

    def _narrowed(self, choice: Choice, paths: list[str], card: str) -> list[str]:
        """The files of a subset and split: data files, or where a folder has none of them plain texts."""
        files = [path for path in paths if is_data_file(path) and not _is_copy(path, paths)]
        files = files or [path for path in paths if kind_of(path) == TEXT and not _is_about(path)]
        chosen = choose(files, card, choice) if files else []
        self._unread += [path for path in paths if path not in chosen and not _is_about(path)]
        return chosen


def _held(dataset: Dataset, own: Place) -> dict[str, Place]:
    places = {}
    for name, split in ((TEST, dataset.test), (VALIDATION, dataset.validation)):
        if split is not None and split.split is not None:
            field = f"spec.dataset.{name}.split"
            places[name] = Place(dataset.uri, field, replace(own.choice, field=field, split=split.split))
        elif split is not None and split.uri is not None:
            field = f"spec.dataset.{name}.uri"
            places[name] = Place(split.uri, field, Choice(field, otherwise=name))
    return places


def _is_copy(path: str, paths: Sequence[str]) -> bool:
    """Whether the same file lies there without its compression."""
    return path.lower().endswith(COMPRESSED) and path.rpartition(".")[0] in paths


def _is_about(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return name in NOT_DATA or any(fnmatch(name, pattern) for pattern in ABOUT)
