"""Data files as rows: JSON, CSV, Parquet, Arrow and plain text. What can't be read is named by file and line."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_trainer.data import csv_rows, json_rows
from finetune_trainer.data.decoding import COMPRESSED, opened, opened_text, unreadable
from finetune_trainer.data.json_text import loads
from finetune_trainer.data.ledger import Cause, Note
from finetune_trainer.failures import StepFailed

READERS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
TEXT = ".txt"
NOT_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "package.json")
OF_MACOS = "__MACOSX"  # a folder with what else it knew of packed files
PARAGRAPHS = 1000  # characters of a plain text's paragraphs that make one row


@dataclass(frozen=True)
class Row:
    """One row and where it lies: `place` reads "train.jsonl line 17"."""

    place: str
    values: dict[str, Any]


@dataclass
class Read:
    """The rows of files, notes on what is no row or was read otherwise, and of files with several splits which were read."""

    rows: list[Row] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def is_data_file(path: str) -> bool:
    """Whether the name is one of a data file that can be read, compressed or not, and that no program keeps for itself."""
    if any(part.startswith(".") or part == OF_MACOS for part in path.split("/")):
        return False
    name = path.rpartition("/")[2]
    return kind_of(name) in READERS and name not in NOT_DATA


def kind_of(name: str) -> str:
    """The ending that says what a file holds, without that of a compression."""
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def read_rows(folder: Path, files: Iterable[str], split: str | None = None) -> Read:
    """The rows of all files in the order given; of a file that holds several splits, those of one.

    Raises StepFailed DatasetUnreadable, whatever was raised on the way.
    """
    read = Read()
    for name in files:
        try:
            _read_file(folder / name, name, split, read)
        except (StepFailed, MemoryError):
            raise
        except Exception as error:
            raise unreadable(name, f"it can't be read ({type(error).__name__}) after {len(read.rows)} rows") from error
    return read


def _read_file(path: Path, name: str, split: str | None, read: Read) -> None:
    """The format that a file's first bytes tell, else the ending of its name; any other file is tried as JSON."""
    with opened(path, name) as stream:
        start = stream.read(6)
    kind = kind_of(name)
    if start.startswith(b"PAR1") or kind == ".parquet":
        read.rows += _numbered(_parquet(path, name), name)
    elif start == b"ARROW1" or kind == ".arrow":
        read.rows += _numbered(_arrow(path, name, is_file=start == b"ARROW1"), name)
    else:
        with opened_text(path, name) as (text, encoding):
            found = _csv(text, name, kind, read) if kind in (".csv", ".tsv") else _json_or_text(text, name, kind, split, read)
            if encoding is not None:
                read.notes += [Note(Cause.OTHER_ENCODING, f"{row.place} ({encoding})") for row in found]
            read.rows += found


def _csv(text: Any, name: str, kind: str, read: Read) -> list[Row]:
    found = list(csv_rows.read(text, name, "\t" if kind == ".tsv" else ","))
    read.notes += [Note(Cause.REPEATED_HEADER, place) for place, values in found if values is None]
    return [Row(place, dict(values)) for place, values in found if values is not None]


def _json_or_text(text: Any, name: str, kind: str, split: str | None, read: Read) -> list[Row]:
    if kind == TEXT:
        whole = text.read()
        if not _is_json(whole):
            return [Row(f"{name} line {line}", {"text": part}) for line, part in _paragraphs(whole)]
        text = io.StringIO(whole, newline="")
    rows = json_rows.Rows(name, split)
    found = [Row(place, values) for place, values in rows.read(text)]
    read.chosen += rows.chosen
    read.unread += rows.unread
    return found


def _is_json(text: str) -> bool:
    """Whether a plain text begins as rows in JSON do."""
    try:
        return isinstance(loads(text.lstrip().partition("\n")[0]), dict | list)
    except ValueError:
        return False


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of stretches of paragraphs, each cut after the one that reaches PARAGRAPHS characters."""
    part, begun = "", 1
    lines = text.replace("\r\n", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        ends = not line.strip()
        if ends and len(part) >= PARAGRAPHS:
            yield begun, part.strip("\n")
            part = ""
        elif part or not ends:
            begun, part = (begun, f"{part}\n{line}") if part else (number, line)
    if part.strip():
        yield begun, part.strip("\n")


def _parquet(path: Path, name: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with opened(path, name) as stream, path.open("rb") as packed:
            is_packed = packed.read(4) != stream.read(4)
        with opened(path, name) as stream:
            source = pyarrow.BufferReader(stream.read()) if is_packed else path
            yield from pyarrow.parquet.ParquetFile(source).iter_batches(batch_size=1024)
    except pyarrow.ArrowException as error:
        raise unreadable(name, f"not Parquet: {str(error).splitlines()[0]}") from error


def _arrow(path: Path, name: str, *, is_file: bool) -> Iterator[Any]:
    """The stream of record batches that datasets.save_to_disk writes, or a file of them."""
    import pyarrow

    try:
        with pyarrow.OSFile(str(path)) as file:
            if is_file:
                found = pyarrow.ipc.open_file(file)
                yield from (found.get_batch(number) for number in range(found.num_record_batches))
            else:
                with pyarrow.ipc.open_stream(file) as stream:
                    yield from stream
    except pyarrow.ArrowException as error:
        raise unreadable(name, f"not an Arrow stream: {str(error).splitlines()[0]}") from error


def _numbered(batches: Iterable[Any], name: str) -> Iterator[Row]:
    number = 0
    for batch in batches:
        if len({*batch.schema.names}) < len(batch.schema.names):
            raise unreadable(name, "it has two columns of one name, one of which would be lost: name each column once")
        for values in batch.to_pylist():
            number += 1
            yield Row(f"{name} row {number}", values)
