"""Data files as rows: jsonl, json, csv, parquet and arrow. What can't be read is named by file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed

READERS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
NOT_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "package.json")
MAX_CELL = 1 << 24  # characters of one csv cell; the module's own limit of 131072 is too low for documents


@dataclass(frozen=True)
class Row:
    """One row and where it lies: `place` reads "train.jsonl line 17"."""

    place: str
    values: dict[str, Any]


def is_data_file(path: str) -> bool:
    """Whether the name is one of a data file that can be read."""
    name = path.rpartition("/")[2]
    return name.endswith(READERS) and name not in NOT_DATA


def read_rows(folder: Path, files: tuple[str, ...]) -> list[Row]:
    """The rows of all files in the order given. Raises StepFailed DatasetUnreadable."""
    return [row for file in files for row in read_file(folder / file, file)]


def read_file(path: Path, name: str) -> Iterator[Row]:
    """The rows of one file, by the ending of its name; a name with another ending is tried as jsonl."""
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            yield from _read_parquet(path, name)
        elif kind == ".arrow":
            yield from _read_arrow(path, name)
        elif kind in (".csv", ".tsv"):
            yield from _read_csv(path, name, "\t" if kind == ".tsv" else ",")
        elif kind == ".json":
            yield from _read_json(path, name)
        else:
            yield from _read_jsonl(path, name)
    except UnicodeDecodeError as error:
        raise unreadable(name, f"byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise unreadable(name, error.strerror or str(error)) from error


def _read_jsonl(path: Path, name: str) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"{name} line {number}"
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise unreadable(place, f"not JSON: {error.msg} at column {error.colno}") from error
            yield _row(place, value)


def _read_json(path: Path, name: str) -> Iterator[Row]:
    """A list of objects; an object of one list ({"data": [...]}); or jsonl under another name."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _read_jsonl(path, name)
            return
        raise unreadable(f"{name} line {error.lineno}", f"not JSON: {error.msg} at column {error.colno}") from error
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        value = lists[0] if len(value) == 1 and lists else [value]
    if not isinstance(value, list):
        raise unreadable(name, "must hold a list of objects")
    for number, entry in enumerate(value, start=1):
        yield _row(f"{name} row {number}", entry)


def _read_csv(path: Path, name: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        try:
            for values in reader:
                if None in values or None in values.values():
                    found = "more" if None in values else "fewer"
                    raise unreadable(f"{name} line {reader.line_num}", f"{found} cells than the header has names")
                yield Row(f"{name} line {reader.line_num}", dict(values))
        except csv.Error as error:
            raise unreadable(f"{name} line {reader.reader.line_num}", f"not CSV: {error}") from error


def _read_parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from _numbered(pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024), name)
    except pyarrow.ArrowException as error:
        raise unreadable(name, f"not Parquet: {str(error).splitlines()[0]}") from error


def _read_arrow(path: Path, name: str) -> Iterator[Row]:
    """The stream of record batches that datasets.save_to_disk writes."""
    import pyarrow

    try:
        with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            yield from _numbered(stream, name)
    except pyarrow.ArrowException as error:
        raise unreadable(name, f"not an Arrow stream: {str(error).splitlines()[0]}") from error


def _numbered(batches: Iterable[Any], name: str) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield Row(f"{name} row {number}", values)


def _row(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise unreadable(place, f"must hold an object with columns, not {type(value).__name__}")
    return Row(place, value)


def unreadable(place: str, why: str) -> StepFailed:
    return StepFailed(StepReason.DatasetUnreadable, f"spec.dataset: {place}: {why}")
