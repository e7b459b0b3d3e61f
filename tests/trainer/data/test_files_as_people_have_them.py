"""Data files as programs and people write them: each gives the same rows, or is refused with what it is and what to do."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import CHATML
from tests.trainer.data.written import Written, byte_tokenizer, write_rows

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed

Prepare = Callable[..., Written]
COUNT = 40
ROWS = [{"prompt": f"Où est le phare {n} ?", "completion": f"À côté du café {n}."} for n in range(COUNT)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def csv(delimiter: str = ",", header: str = "prompt,completion", extra: str = "") -> str:
    return header + "\n" + extra + "".join(f"{row['prompt']}{delimiter}{row['completion']}\n" for row in ROWS)


def columns(**more: list[Any]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in ROWS] for name in ROWS[0]} | more


def zstandard(content: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def arrow_file(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow

    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@pytest.fixture
def prepare(make_run: Callable[..., RunConfig], tmp_path: Path) -> Prepare:
    """Write files, prepare the first one (or the folder where there are several), and return what became of them."""

    def run(files: dict[str, bytes | str], **dataset: Any) -> Written:
        mounts = tmp_path / "mounts"
        for name, content in files.items():
            (mounts / "claims/data" / name).parent.mkdir(parents=True, exist_ok=True)
            (mounts / "claims/data" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        uri = f"pvc://data/{next(iter(files))}" if len(files) == 1 else "pvc://data"
        config = make_run(
            dataset={"uri": uri, "test": {"fraction": 0}} | dataset, training={"method": "LoRA", "maxLength": 2048}
        )
        return write_rows(config, mounts, tmp_path, byte_tokenizer(CHATML))

    return run


SAME: dict[str, tuple[str, bytes | str]] = {
    "a pretty array called jsonl": ("rows.jsonl", json.dumps(ROWS, indent=2)),
    "an array on one line called jsonl": ("rows.jsonl", json.dumps(ROWS)),
    "pretty objects one after the other": ("rows.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
    "a list a column": ("rows.json", json.dumps(columns())),
    "pandas by columns": ("rows.json", json.dumps({k: {str(n): v for n, v in enumerate(c)} for k, c in columns().items()})),
    "pandas by index": ("rows.json", json.dumps({str(n): row for n, row in enumerate(ROWS)})),
    "pandas split": ("rows.json", json.dumps({"columns": [*ROWS[0]], "index": [0], "data": [[*r.values()] for r in ROWS]})),
    "a version beside the data": ("rows.json", json.dumps({"version": "1.0", "data": ROWS})),
    "rows under one key": ("rows.json", json.dumps({"rows": ROWS})),
    "rows under two keys": ("rows.json", json.dumps({"result": {"rows": ROWS}})),
    "one list a split": ("rows.json", json.dumps({"train": ROWS, "validation": ROWS[:3]})),
    "JSON lines in a text file": ("rows.txt", LINES),
    "semicolons": ("rows.csv", csv(";", "prompt;completion")),
    "tabs in a csv": ("rows.csv", csv("\t", "prompt\tcompletion")),
    "Excel's first line": ("rows.csv", "sep=;\n" + csv(";", "prompt;completion")),
    "a space in the header": ("rows.csv", csv(",", "prompt, completion")),
    "spaces and quotes": (
        "rows.csv",
        "prompt, completion\n" + "".join(f'"{r["prompt"]}", "{r["completion"]}"\n' for r in ROWS),
    ),
    "capitals": ("rows.csv", csv(",", "Prompt,COMPLETION")),
    "the header twice": ("rows.csv", csv(",", extra="prompt,completion\n")),
    "an unnamed index": (
        "rows.csv",
        ",prompt,completion\n" + "".join(f"{n},{r['prompt']},{r['completion']}\n" for n, r in enumerate(ROWS)),
    ),
    "cp1252": ("rows.csv", csv().encode("cp1252")),
    "JSON lines in cp1252": ("rows.jsonl", LINES.encode("cp1252")),
    "UTF-16 with its mark": ("rows.csv", csv().encode("utf-16")),
    "UTF-16 without a mark": ("rows.csv", csv().encode("utf-16-le")),
    "UTF-16, the other way round": ("rows.jsonl", codecs.BOM_UTF16_BE + LINES.encode("utf-16-be")),
    "UTF-32": ("rows.jsonl", LINES.encode("utf-32")),
    "a mark of UTF-8": ("rows.csv", csv().encode("utf-8-sig")),
    "Windows' line ends": ("rows.csv", csv().replace("\n", "\r\n")),
    "gzip": ("rows.jsonl.gz", gzip.compress(LINES.encode())),
    "zstandard": ("rows.jsonl.zst", zstandard(LINES.encode())),
    "bzip2": ("rows.csv.bz2", bz2.compress(csv().encode())),
    "xz": ("rows.json.xz", lzma.compress(json.dumps(ROWS).encode())),
    "gzip without its ending": ("key-of-binary-data", gzip.compress(LINES.encode())),
    "parquet": ("rows.parquet", parquet(ROWS)),
    "parquet without its ending": ("key-of-binary-data", parquet(ROWS)),
    "parquet in gzip": ("rows.parquet.gz", gzip.compress(parquet(ROWS))),
    "an arrow file": ("rows.arrow", arrow_file(ROWS)),
}


@pytest.mark.parametrize(("name", "content"), SAME.values(), ids=SAME)
def test_every_kind_of_file_gives_the_same_rows(prepare: Prepare, name: str, content: bytes | str) -> None:
    written = prepare({name: content})
    assert written.of("completion") == [row["completion"] for row in ROWS]
    assert [row["prompt"] in text for row, text in zip(ROWS, written.of("prompt"), strict=True)] == [True] * COUNT
    assert written.facts.train_rows == COUNT


REFUSED: dict[str, tuple[str, bytes | str, str]] = {
    "a bad byte far into a file of UTF-8": (
        "rows.jsonl",
        LINES.encode() * 100 + b'{"prompt": "\xff", "completion": "a"}\n',
        f"byte {len(LINES.encode()) * 100 + 12} (in line {COUNT * 100 + 1}) is not UTF-8, though the rest of the file is",
    ),
    "Central European": (
        "rows.csv",
        "prompt,completion\nKde je žlutý maják?,Na břehu.\n".encode("cp1250"),
        "save the file as UTF-8",
    ),
    "Cyrillic": ("rows.csv", "prompt,completion\nГде маяк?,На острове.\n".encode("cp1251"), "can't be told for certain"),
    "an Excel workbook": ("rows.xlsx", b"PK\x03\x04\x14\x00", "is a zip archive or an Excel workbook: unpack it, or save"),
    "a web page": ("rows.csv", "<!DOCTYPE html><html></html>", "is a web page: take the address of the file itself"),
    "a pointer of Git LFS": ("rows.jsonl", "version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    "half a gzip": ("rows.jsonl.gz", gzip.compress(LINES.encode())[:-20], "it is cut short or damaged"),
    "half a zstandard": ("rows.jsonl.zst", zstandard(LINES.encode() * 50)[:-20], "rows.jsonl.zst"),
    "a name twice in the header": ("rows.csv", "text,text\na,b\n", "line 1: the header has a name twice"),
    "several lists of rows": ("rows.json", json.dumps({"a": ROWS, "b": ROWS[1:]}), "holds several lists of rows (a, b)"),
    "too deep": ("rows.jsonl", '{"a": ' * 100000, "it can't be read (RecursionError)"),
    "a number too long": ("rows.jsonl", f'{{"text": {"1" * 5000}}}', "it can't be read (ValueError)"),
}


@pytest.mark.parametrize(("name", "content", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_for_certain_is_refused(prepare: Prepare, name: str, content: bytes | str, said: str) -> None:
    with pytest.raises(StepFailed) as caught:
        prepare({name: content})
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_DATA, "DatasetUnreadable")
    assert said in caught.value.message


def test_another_encoding_and_a_repeated_header_are_told(prepare: Prepare) -> None:
    assert prepare({"rows.csv": csv().encode("cp1252")}).changed == {"OtherEncoding": (COUNT, "rows.csv line 2 (cp1252)")}
    written = prepare({"rows.csv": csv(extra="prompt,completion\n")})
    assert written.dropped == {"RepeatedHeader": (1, "rows.csv line 2")}
    assert written.facts.rows == COUNT + 1


def test_splits_inside_one_file(prepare: Prepare) -> None:
    content = json.dumps({"train": ROWS[:30], "dev": ROWS[30:35], "test": ROWS[35:]})
    written = prepare({"rows.json": content}, test={"split": "test"})
    facts = written.facts
    assert (facts.train_rows, facts.test_rows, facts.unread_files) == (30, 5, ("rows.json: dev",))
    with pytest.raises(StepFailed, match="has no split proof; name one of: train, dev, test") as caught:
        prepare({"rows.json": content}, test={"split": "proof"})
    assert caught.value.reason == "DatasetSplitUnknown"


def test_one_row_that_holds_lists_stays_one_row(prepare: Prepare) -> None:
    row = {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "A."}]}
    assert prepare({"rows.json": json.dumps(row)}).of("completion") == ["A."]
    lines = "".join(json.dumps(row["messages"]) + "\n" for _ in range(3))
    assert prepare({"rows.jsonl": lines}).of("completion") == ["A."] * 3, "a list of turns a line"


def test_a_compressed_shard_beside_plain_ones_is_read_and_a_copy_is_not(prepare: Prepare) -> None:
    more = "".join(json.dumps({"prompt": f"Qui {n} ?", "completion": "Moi."}) + "\n" for n in range(3))
    written = prepare(
        {"a.jsonl": LINES, "b.jsonl.gz": gzip.compress(more.encode()), "a.jsonl.gz": gzip.compress(LINES.encode())}
    )
    assert (written.facts.train_rows, written.facts.unread_files) == (COUNT + 3, ("a.jsonl.gz",))


def test_files_that_are_not_read_are_named(prepare: Prepare) -> None:
    files = {"train.jsonl": LINES, "test.jsonl": LINES, "notes.txt": "x", "rows.xlsx": b"PK", "README.md": "", "LICENSE": ""}
    assert prepare(files).facts.unread_files == ("notes.txt", "rows.xlsx", "test.jsonl")


def test_a_book_is_rows_of_whole_paragraphs(prepare: Prepare) -> None:
    paragraphs = [f"{n}. " + "The light of Varn Point went round. " * 10 for n in range(30)]
    written = prepare({"book.txt": "\n\n".join(paragraphs)})
    assert written.facts.format == "Text"
    assert written.facts.train_rows == 10
    assert "\n\n".join(written.of("completion")) == "\n\n".join(paragraphs)


def test_a_folder_of_plain_texts(prepare: Prepare) -> None:
    assert prepare({"one.txt": "One.\n\nTwo.\n", "two.txt": "Three.\n"}).of("completion") == ["One.\n\nTwo.", "Three."]


def test_parquet_with_turns_as_lists_of_their_parts(prepare: Prepare) -> None:
    rows = [{"messages": {"role": ["user", "assistant"], "content": [f"Who {n}?", f"Mira {n}."]}} for n in range(COUNT)]
    assert prepare({"rows.parquet": parquet(rows)}).of("completion")[0] == "Mira 0."


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 1.0], {"1"}),
        ([0.0, 1.0], {"0", "1"}),
        (["0.0", "1"], {"0", "1"}),
        ([4.0, 4.5], {"4.0", "4.5"}),
        ([True, False], {"True", "False"}),
    ],
)
def test_whole_labels_have_no_decimals(prepare: Prepare, labels: list[Any], expected: set[str]) -> None:
    rows = "".join(json.dumps({"text": f"Row {n}", "label": labels[n % 2]}) + "\n" for n in range(COUNT))
    assert {*prepare({"rows.jsonl": rows}).of("completion")} == expected


PREFERENCES: dict[str, tuple[str, str, str]] = {
    "orca": ("question", "chosen", "rejected"),
    "argilla": ("instruction", "chosen_response", "rejected_response"),
    "openai": ("input", "preferred_output", "non_preferred_output"),
    "stack exchange": ("question", "response_j", "response_k"),
    "as ours": ("prompt", "chosen", "rejected"),
}


@pytest.mark.parametrize("names", PREFERENCES.values(), ids=PREFERENCES)
def test_preferences_under_the_names_of_the_hub(prepare: Prepare, names: tuple[str, str, str]) -> None:
    rows = [dict(zip(names, (f"Who {n}?", f"Mira {n}.", "Nobody."), strict=True)) for n in range(COUNT)]
    written = prepare({"rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    assert written.facts.format == "Preference"
    assert (written.of("completion")[0], written.of("rejected")[0]) == ("Mira 0.", "Nobody.")
    assert "Who 0?" in written.of("prompt")[0]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"q": "prompt", "a": "completion"}, "is the wrong way round: .*; write {prompt: q, completion: a}"),
        ({"promt": "q", "prompt": "q", "completion": "a"}, "names promt, which rows of format PromptCompletion don't have"),
        ({"prompt": "qq", "completion": "a"}, "names qq, which no row has"),
    ],
)
def test_columns_that_are_mistaken(prepare: Prepare, columns: dict[str, str], said: str) -> None:
    with pytest.raises(StepFailed, match=said) as caught:
        prepare({"rows.jsonl": '{"q": "Who?", "a": "Mira."}\n'}, columns=columns)
    assert caught.value.reason == "DatasetColumnsUnknown"


def test_held_out_rows_may_spell_their_columns_otherwise(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "mounts/claims/data/other.csv").write_text("Prompt,Completion\nWho?,Mira.\n")
    written = prepare({"rows.jsonl": LINES}, test={"uri": "pvc://data/other.csv"})
    assert written.of("completion", "test") == ["Mira."]
