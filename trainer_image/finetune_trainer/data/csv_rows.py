"""Rows in CSV as spreadsheets and scripts write it: whatever parts the cells, with white space in the header, or that twice."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from typing import TextIO

from finetune_trainer.data.decoding import unreadable

MAX_CELL = 1 << 24  # characters of one cell; the module's own limit of 131072 is too low for documents
DELIMITERS = ";\t|,"
MISSING = frozenset(("nan", "NaN", "NULL", "<NA>", "#N/A"))  # what pandas, databases and Excel write into empty cells
SEPARATOR = "sep="  # how a first line tells Excel what parts the cells


def read(stream: TextIO, name: str, delimiter: str) -> Iterator[tuple[str, dict[str, str] | None]]:
    """Place and columns of each row; None for a line that is the header once more.

    `delimiter` is what the file's ending says, and gives way where the header has none of it.
    Raises StepFailed DatasetUnreadable with the line.
    """
    csv.field_size_limit(MAX_CELL)
    first = stream.readline()
    before = 0
    if first.lower().startswith(SEPARATOR) and len(first.strip()) == len(SEPARATOR) + 1:
        delimiter, first, before = first.strip()[-1], stream.readline(), 1
    elif delimiter not in first:
        delimiter = next((other for other in DELIMITERS if other in first), delimiter)
    spaced = f"{delimiter} " in first and f"{delimiter} " * first.count(delimiter) == _gaps(first, delimiter)
    reader = csv.reader(chain([first], stream), delimiter=delimiter, strict=True, skipinitialspace=spaced)
    begun = 1
    try:
        header = [column.strip() for column in next(reader, [])]
        twice = next((column for number, column in enumerate(header) if column and column in header[:number]), None)
        if twice is not None:
            raise unreadable(f"{name} line {reader.line_num + before}", "the header has a name twice: name each column once")
        begun = reader.line_num + before + 1
        for cells in reader:
            place, begun = f"{name} line {reader.line_num + before}", reader.line_num + before + 1
            if cells:
                cells = _fitting(cells, len(header), place, delimiter)
                is_header = [cell.strip() for cell in cells] == header
                said = ("" if cell.strip() in MISSING else cell for cell in cells)
                yield place, None if is_header else dict(zip(header, said, strict=True))
    except csv.Error as error:
        raise unreadable(f"{name} line {begun}", f"not CSV: {error}; {_hint(error)}") from error


def _fitting(cells: list[str], count: int, place: str, delimiter: str) -> list[str]:
    """The cells without empty ones beyond the header, as lines have that end in a delimiter. Raises StepFailed."""
    if len(cells) > count and not any(cells[count:]):
        return cells[:count]
    if len(cells) != count:
        found = "more" if len(cells) > count else "fewer"
        shown = "tab" if delimiter == "\t" else delimiter
        raise unreadable(place, f"{found} cells than the header has names; a cell that holds a {shown} stands in double quotes")
    return cells


def _hint(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "the double quotes that a cell of this line begins with are never closed"
    return 'double quotes inside a cell in double quotes are written twice ("")'


def _gaps(header: str, delimiter: str) -> str:
    """Each delimiter of a header with the character after it."""
    return "".join(header[number : number + 2] for number, character in enumerate(header) if character == delimiter)
