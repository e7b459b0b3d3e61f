"""A data file's bytes as text: compressed or not, in UTF-8, in what a byte order mark says, or in Windows' Western cp1252.

No library tells other single-byte encodings apart: charset-normalizer 3.5 reads French as Polish. Where nothing is certain the
file is refused, as a wrong guess would be learned.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
MAGIC: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
ZSTANDARD = b"\x28\xb5\x2f\xfd"
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What is often given in place of rows, by its first bytes.
OTHERS = {
    b"7z\xbc\xaf": "is a 7z archive: unpack it",
    b"Rar!\x1a": "is a RAR archive: unpack it",
    b"\x04\x22\x4d\x18": "is compressed by lz4: take .gz, .zst, .bz2 or .xz",
    b"\x93NUMPY": "is an array of numpy: save the rows as JSON lines",
    **dict.fromkeys(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "is a pickle: save the rows as JSON lines or Parquet"
    ),
    b"FEA1\0": "is of Feather's first version: save it as Parquet",
    b"Obj\x01": "is an Avro file: save it as Parquet",
    b"\x89HDF": "is an HDF5 file: save it as Parquet",
    b"\x89PNG": "is an image",
    b"\xff\xd8\xff": "is an image",
    b"PK\x03\x04": "is a zip archive or an Excel workbook: unpack it, or save its sheet as CSV",
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook: save its sheet as CSV",
    b"%PDF": "is a PDF: take its text out of it first",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
    b"SQLite format 3": "is an SQLite database: export the table as CSV",
}
PAGES = (b"<!doctype html", b"<html")  # in whatever letters, behind white space
TAR = (257, b"ustar")  # where its mark stands, also of one that was compressed
UTF_8, CHUNK = "utf-8-sig", 1 << 20
WESTERN = frozenset("àâäáãåæçèéêëìíîïñòóôõöøùúûüÿßœÀÂÄÁÃÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜŒ“”„‘’‚‹›–—…•«»€£§°©®™¡¿´·ªº½¼¾²³\xa0")
# Central European text read as Western: signs inside words, and letters that stand otherwise in Western languages.
FOREIGN = re.compile(r"[^\W\d_][¡¿ªº²³¼½¾§£°][^\W\d_]|õ(?!e)")
WESTERN_SHARE = 0.3  # most letters of a Western text have no accent


@contextmanager
def opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed. Raises StepFailed DatasetUnreadable."""
    with path.open("rb") as stream:
        start = stream.read(512)
    _refuse_other(name, start)
    opener = next((opener for magic, opener in MAGIC.items() if start.startswith(magic)), open)
    try:
        if start.startswith(ZSTANDARD):
            import pyarrow

            with pyarrow.input_stream(str(path), compression="zstd") as plain:
                yield cast(IO[bytes], plain)
        else:
            with opener(path, "rb") as plain:
                yield plain
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise unreadable(name, "it is cut short or damaged: it can't be decompressed") from error
    except OSError as error:
        raise unreadable(name, error.strerror or "it is cut short or damaged: it can't be decompressed") from error


def _refuse_other(name: str, start: bytes) -> None:
    """Raises StepFailed DatasetUnreadable where the first bytes are those of something that is often given in place of rows."""
    found = next((why for magic, why in OTHERS.items() if start.startswith(magic)), None)
    if start.lstrip().lower().startswith(PAGES):
        found = "is a web page: take the address of the file itself"
    if start[TAR[0] :].startswith(TAR[1]):
        found = "is a tar archive: unpack it"
    if found is not None:
        raise unreadable(name, found)


@contextmanager
def opened_text(path: Path, name: str) -> Iterator[tuple[io.TextIOWrapper, str | None]]:
    """The file as text with its own line ends, and the encoding where it is another than UTF-8."""
    encoding = _encoding(path, name)
    with opened(path, name) as stream:
        text = io.TextIOWrapper(stream, encoding=encoding, newline="")
        yield text, None if encoding == UTF_8 else encoding


def _encoding(path: Path, name: str) -> str:
    """Raises StepFailed DatasetUnreadable where nothing says how the bytes are to be read."""
    with opened(path, name) as stream:
        start = stream.read(4096)
    _refuse_other(name, start)
    marked = next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), None)
    if marked is None and b"\0" in start:
        marked = next((e for e, odd in (("utf-16-le", 1), ("utf-16-be", 0)) if start[odd::2].count(0) > len(start) // 4), None)
    if marked is not None:
        return marked
    if (bad := _first_bad_byte(path, name)) is None:
        return UTF_8
    with opened(path, name) as stream:
        whole = stream.read()
    line = whole.count(b"\n", 0, bad) + 1
    where = f"byte {bad} (in line {line}) is not UTF-8"
    if _multibyte(whole) > 1:
        raise unreadable(name, f"{where}, though the rest of the file is: mend or remove that character")
    if not _is_western(whole):
        raise unreadable(name, f"{where}, and what else it is can't be told for certain: save the file as UTF-8")
    return "cp1252"


def _first_bad_byte(path: Path, name: str) -> int | None:
    """Where the file stops being UTF-8, counted in its decompressed bytes; None where all of it is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    before = 0
    with opened(path, name) as stream:
        while True:
            chunk = stream.read(CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                return before - pending + error.start
            if not chunk:
                return None
            before += len(chunk)


def _multibyte(whole: bytes) -> int:
    """How many characters of more than one byte UTF-8 finds in it."""
    return sum(ord(character) > 127 for character in whole.decode("utf-8", errors="ignore"))


def _is_western(whole: bytes) -> bool:
    try:
        text = whole.decode("cp1252")
    except UnicodeDecodeError:
        return False
    letters = sum(map(str.isalpha, text))
    accented = [character for character in text if character > "\x7f"]
    return WESTERN.issuperset(accented) and len(accented) < WESTERN_SHARE * letters and FOREIGN.search(text) is None


def unreadable(place: str, why: str) -> StepFailed:
    return StepFailed(StepReason.DatasetUnreadable, f"spec.dataset: {place}: {why}")
