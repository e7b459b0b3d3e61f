"""The files of spec.evaluation.tasks: lm-eval's YAML, read without running any of it, and the rows that it names.

lm-eval lets a task's file call Python (`!function`), include any file, and load rows and metrics from a hub. A task that
does is refused by name. What is left is data, and jinja templates, which task_scores.py renders in a sandbox.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed, first_line

Config = dict[str, Any]

CONFIGS = "tasks.json"  # in the store's entry, beside the rows: each task's configuration by its name
YAML = (".yaml", ".yml")
READERS = ("json", "csv", "parquet", "text")  # of datasets, for files on this machine
KEYS = frozenset(
    (
        *("task", "task_alias", "tag", "include", "metadata", "description", "output_type", "repeats"),
        *("dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split", "test_split"),
        *("fewshot_split", "fewshot_config", "num_fewshot", "fewshot_delimiter", "target_delimiter", "gen_prefix"),
        *("doc_to_text", "doc_to_target", "doc_to_choice", "generation_kwargs", "filter_list", "metric_list"),
        *("should_decontaminate", "doc_to_decontamination_query"),
    )
)
GENERATION = frozenset(("until", "do_sample", "temperature", "max_gen_toks", "max_new_tokens"))
FILTERS = frozenset(
    (
        *("regex", "regex_pos", "multi_choice_regex", "format_span", "map", "lowercase", "uppercase", "remove_whitespace"),
        *("take_first", "take_first_k", "majority_vote"),
    )
)
WITHOUT_CODE = "bring rows and templates that need none"


@dataclass(frozen=True)
class _Code:
    """A YAML tag that makes lm-eval run code, such as !function; `tag` is its name."""

    tag: str


class _Loader(yaml.SafeLoader):
    """YAML as data; a tag that YAML itself doesn't define becomes a _Code."""


_Loader.add_multi_constructor("!", lambda _loader, suffix, _node: _Code(f"!{suffix}"))


@dataclass(frozen=True)
class Folder:
    """Where the files lie: `uri` is how to speak of it, `files` are all there are, relative to `path`."""

    path: Path
    files: tuple[str, ...]
    uri: str


def read(folder: Folder, names: Iterable[str]) -> dict[str, Config]:
    """Configuration of each task, with what it includes, and its rows' paths relative to the folder.

    Raises StepFailed TaskNotFound, TaskRefused or TaskFileMissing, with the task and the file in the message.
    """
    written = {file: _parsed(folder, file) for file in folder.files if file.endswith(YAML)}
    named = ((found.get("task"), file) for file, found in reversed(written.items()))  # of two the first counts, as in lm-eval
    by_name = {name: file for name, file in named if isinstance(name, str)}
    made = {}
    for name in names:
        if name not in by_name:
            known = f"it has {', '.join(sorted(by_name))}" if by_name else "it has none"
            raise StepFailed(
                StepReason.TaskNotFound,
                f"spec.evaluation.tasks: no YAML file at {folder.uri} has the task {name} ({known}); put its file and its"
                " rows there, or correct the name",
            )
        config = _whole(folder, by_name[name], ())
        _check(config, f"{by_name[name]} (task {name})")
        made[name] = config
    return made


def rows_of(config: Config) -> list[str]:
    """Paths of the files with the task's rows."""
    return list(_paths(config["dataset_kwargs"]["data_files"]))


def copy(folder: Folder, configs: Mapping[str, Config], into: Path) -> None:
    """Lay out what is kept: the configurations and the rows."""
    into.mkdir(parents=True)
    text = json.dumps(dict(sorted(configs.items())), indent=1, default=str)  # inside, the order of choices is kept
    (into / CONFIGS).write_text(text, encoding="utf-8")
    for file in sorted({file for config in configs.values() for file in rows_of(config)}):
        (into / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder.path / file, into / file)


def kept(folder: Path) -> dict[str, Config]:
    """What `copy` left there, with the rows' paths as lm-eval needs them: from the root."""
    configs: dict[str, Config] = json.loads((folder / CONFIGS).read_text(encoding="utf-8"))
    for config in configs.values():
        kwargs = config["dataset_kwargs"]
        kwargs["data_files"] = _replaced(kwargs["data_files"], lambda file: str(folder / file))
    return configs


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _parsed(folder: Folder, file: str) -> Config:
    try:
        with (folder.path / file).open("rb") as stream:
            found = yaml.load(stream, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = f"spec.evaluation.taskFiles: {file} is no YAML: {first_line(error)}"
        raise StepFailed(StepReason.TaskRefused, text) from error
    return found if isinstance(found, dict) else {}


def _whole(folder: Folder, file: str, above: tuple[str, ...]) -> Config:
    """A file with what it includes below it, as lm-eval merges them: what is written in the file itself wins."""
    if file in above:
        raise StepFailed(StepReason.TaskRefused, f"spec.evaluation.taskFiles: {file} includes itself, by {' and '.join(above)}")
    config = _parsed(folder, file)
    included = config.pop("include", [])
    merged: Config = {}
    for other in included if isinstance(included, list) else [included]:
        merged |= _whole(folder, _beside(folder, file, other, "includes"), (*above, file))
    kwargs = config.get("dataset_kwargs")
    if isinstance(kwargs, dict) and "data_files" in kwargs:
        relative = _replaced(kwargs["data_files"], lambda other: _beside(folder, file, other, "takes its rows from"))
        config["dataset_kwargs"] = kwargs | {"data_files": relative}
    return merged | config


def _beside(folder: Folder, file: str, other: Any, what: str) -> str:
    """The path below the folder of a file that another one names relative to itself."""
    if isinstance(other, _Code):
        raise _runs_code(file, other.tag)
    path = PurePosixPath(str(other))
    if path.is_absolute() or ".." in path.parts or ":" in str(other):
        raise StepFailed(
            StepReason.TaskRefused,
            f"spec.evaluation.taskFiles: {file} {what} {other}; only files beside it are read: name one without a leading /"
            " and without .. and :",
        )
    if path.suffix == ".py":
        raise _runs_code(file, str(path))
    found = (PurePosixPath(file).parent / path).as_posix()
    if found not in folder.files:
        raise StepFailed(
            StepReason.TaskFileMissing,
            f"spec.evaluation.taskFiles: {file} {what} {other}, which is not at {folder.uri}; put it beside {file}",
        )
    return found


def _replaced(files: Any, change: Any) -> Any:
    """data_files with each path changed: a path, a list of them, or either by the name of a split."""
    if isinstance(files, dict):
        return {split: _replaced(inner, change) for split, inner in files.items()}
    return [change(file) for file in files] if isinstance(files, list) else change(files)


def _paths(files: Any) -> Iterator[str]:
    if isinstance(files, dict | list):
        for inner in files.values() if isinstance(files, dict) else files:
            yield from _paths(inner)
    else:
        yield files


# ── What is let through ───────────────────────────────────────────────────────────────────────────────────────────────


def _check(config: Config, where: str) -> None:
    for code in _codes(config):
        raise _runs_code(where, code.tag)
    if unknown := sorted(str(key) for key in config if key not in KEYS):
        raise _not_taken(where, f"has {', '.join(unknown)}, which runs code or is no key that is known here; remove it")
    path, kwargs = config.get("dataset_path"), config.get("dataset_kwargs")
    if path not in READERS or not isinstance(kwargs, dict) or not kwargs.get("data_files"):
        raise StepFailed(
            StepReason.TaskFileMissing,
            f"spec.evaluation.taskFiles: {where} takes its rows from {path or 'nowhere'}, and no hub is asked: set dataset_path"
            f" to {', '.join(READERS[:-1])} or {READERS[-1]}, and dataset_kwargs.data_files to files beside it",
        )
    if more := sorted(str(key) for key in kwargs if key not in ("data_files", "field")):
        raise _not_taken(where, f"has dataset_kwargs.{more[0]}; data_files and field are all that is taken")
    _check_answers(config, where)


def _check_answers(config: Config, where: str) -> None:
    """How answers are made and read: greedily, and by functions that are lm-eval's own."""
    (generation,) = _mappings([config.get("generation_kwargs")]) or [{}]
    if more := sorted(str(key) for key in generation if key not in GENERATION):
        raise _not_taken(where, f"has generation_kwargs.{more[0]}; {', '.join(sorted(GENERATION))} are all that is taken")
    if generation.get("do_sample"):
        raise _not_taken(where, "has generation_kwargs.do_sample: true; answers are greedy, so that scores can be repeated")
    if any(metric.get("hf_evaluate") for metric in _mappings(config.get("metric_list"))):
        raise _not_taken(where, "has a metric of the library evaluate, which is fetched from a hub; take one of lm-eval's")
    functions = [f for chain in _mappings(config.get("filter_list")) for f in _mappings(chain.get("filter"))]
    for name in (function.get("function") for function in functions):
        if name not in FILTERS:
            raise _not_taken(where, f"has the filter {name}; take one of {', '.join(sorted(FILTERS))}")


def _mappings(items: Any) -> list[Config]:
    """The mappings of a list; what else there is where a mapping should be, lm-eval refuses."""
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _codes(value: Any) -> Iterator[_Code]:
    if isinstance(value, _Code):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _codes(inner)


def _runs_code(where: str, what: str) -> StepFailed:
    return _not_taken(where, f"needs Python ({what}), which is not run here; {WITHOUT_CODE}")


def _not_taken(where: str, what: str) -> StepFailed:
    return StepFailed(StepReason.TaskRefused, f"spec.evaluation.taskFiles: {where} {what}")
