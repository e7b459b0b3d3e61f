"""Which files of a folder or repository are the rows of one subset and one split, as datasets on the hub lay them out.

    README.md   configs: [{config_name: en, data_files: [{split: train, path: en/train-*.parquet}]}]     where it says so, else:
    en/train-00000-of-00002.parquet    folder of the subset's name; split by the file's name, or by a folder's
    train.jsonl  dev.csv  data/test/rows.parquet

A file whose name says no split counts as train.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import yaml

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed

TRAIN = "train"
KEYWORDS = {
    TRAIN: ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
SHARD = re.compile(r"^(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
NO_SPLITS = ("data", "part")  # what programs call shards of any split
DEFAULT = "default"


@dataclass(frozen=True)
class Choice:
    """What is asked for. An unset subset is the only one, or the default; an unset split is the only one, or `otherwise`."""

    field: str  # what names the split, for messages
    subset: str | None = None
    split: str | None = None
    otherwise: str = TRAIN


def choose(paths: Sequence[str], card: str, choice: Choice) -> list[str]:
    """The files of a subset and a split; `card` is the text of README.md.

    Raises StepFailed DatasetSubsetUnknown or DatasetSplitUnknown, which list what there is.
    """
    splits = _of_subset(paths, _configs(card), choice.subset)
    split = choice.split or (next(iter(splits)) if len(splits) == 1 else choice.otherwise)
    if split not in splits:
        raise _unknown(StepReason.DatasetSplitUnknown, f"{choice.field}: there is no split {split}", splits)
    return sorted(splits[split])


def _of_subset(paths: Sequence[str], configs: Sequence[Mapping[str, Any]], subset: str | None) -> dict[str, list[str]]:
    """Files of one subset by split."""
    named = {str(config.get("config_name", DEFAULT)): config for config in configs}
    if named:
        if subset is None:
            subset = next((n for n, c in named.items() if c.get("default") or n == DEFAULT or len(named) == 1), None)
        if subset is None or subset not in named:
            why = "the dataset has several subsets" if subset is None else f"there is no subset {subset}"
            raise _unknown(StepReason.DatasetSubsetUnknown, f"spec.dataset.subset: {why}", named)
        return _of_config(paths, named[subset])
    if subset is not None:
        inside = [path for path in paths if subset in path.split("/")[:-1]]
        if not inside:
            folders = {folder for path in paths for folder in path.split("/")[:-1]}
            said = f"spec.dataset.subset: there is no folder {subset}"
            raise _unknown(StepReason.DatasetSubsetUnknown, said, folders)
        paths = inside
    return _by_name(paths)


def _of_config(paths: Sequence[str], config: Mapping[str, Any]) -> dict[str, list[str]]:
    """data_files as the hub's documentation has them: a pattern, several, or entries of split and path(s)."""
    folder = str(config.get("data_dir", "")).strip("./")
    inside = [path for path in paths if not folder or path.startswith(f"{folder}/")]
    files = config.get("data_files")
    if files is None:
        return _by_name(inside)
    entries = files if isinstance(files, list) else [files]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        split, patterns = (entry.get("split", TRAIN), entry.get("path")) if isinstance(entry, dict) else (TRAIN, entry)
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            whole = f"{folder}/{pattern}" if folder else str(pattern).removeprefix("./")
            splits.setdefault(str(split), []).extend(path for path in paths if fnmatch(path, whole))
    return {split: found for split, found in splits.items() if found}


def _by_name(paths: Sequence[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for path in paths:
        splits.setdefault(split_of(path), []).append(path)
    return splits


def split_of(path: str) -> str:
    """The split that a file's name says, else a folder's, else train."""
    *folders, name = path.split("/")
    shard = SHARD.match(name)
    for part in (name, *reversed(folders)):
        words = re.split(r"[^a-z0-9]+", part.lower())
        for split, keywords in KEYWORDS.items():
            if any(word in keywords for word in words):
                return split
        if part == name and shard is not None and shard["split"] not in NO_SPLITS:
            return shard["split"]
    return TRAIN


def _configs(card: str) -> list[Mapping[str, Any]]:
    """Entry `configs` of the card's front matter; none where it has no such list."""
    if not card.startswith("---"):
        return []
    try:
        front = yaml.safe_load(card.split("---", 2)[1])
    except (yaml.YAMLError, IndexError):
        return []
    configs = front.get("configs") if isinstance(front, dict) else None
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []


def _unknown(reason: StepReason, said: str, known: Iterable[str]) -> StepFailed:
    listed = ", ".join(sorted(known)[:40]) or "none"
    return StepFailed(reason, f"{said}; name one of: {listed}")
