"""Data files as programs and people write them: each gives the same rows, or is refused with what it is and what to do."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import pickle
import tarfile
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


def archive(content: str) -> bytes:
    packed, member = io.BytesIO(), tarfile.TarInfo("rows.jsonl")
    member.size = len(content.encode())
    with tarfile.open(fileobj=packed, mode="w") as file:
        file.addfile(member, io.BytesIO(content.encode()))
    return packed.getvalue()


def twice_named() -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    cells = [pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array(["Who?"])]
    names = ["completion", "completion", "prompt"]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(cells, names=names), sink)
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
    "a comma behind each line": ("rows.jsonl", "".join(json.dumps(row) + ",\n" for row in ROWS)),
    "a comma before the closing bracket": ("rows.json", json.dumps(ROWS, indent=1)[:-1] + ",]"),
    "a comma at the end of each object": ("rows.jsonl", "".join(json.dumps(row)[:-1] + ",}\n" for row in ROWS)),
    "Python's notation": ("rows.jsonl", "".join(f"{row | {'more': None}}\n" for row in ROWS)),
    "one row in Python's notation": (
        "rows.jsonl",
        "".join(f"{ROWS[n] if n == 7 else json.dumps(ROWS[n])}\n" for n in range(COUNT)),
    ),
    "a list in Python's notation": ("rows.json", str(ROWS)),
    "all objects on one line": ("rows.jsonl", "".join(map(json.dumps, ROWS))),
    "lines that end as old Macs' did": ("rows.jsonl", LINES.replace("\n", "\r")),
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
    "a delimiter at the end of each line": ("rows.csv", csv().replace(".\n", ".,\n")),
    "a delimiter at the end of the header, too": ("rows.csv", csv(header="prompt,completion,").replace(".\n", ".,\n")),
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
    "a web page behind white space": ("rows.jsonl", "\n  <HTML><body>", "is a web page: take the address of the file itself"),
    "a tar archive": ("rows.tar", archive(LINES), "is a tar archive: unpack it"),
    "a tar archive that is compressed": ("rows.jsonl.gz", gzip.compress(archive(LINES)), "is a tar archive: unpack it"),
    "a 7z archive": ("rows.7z", b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it"),
    "lz4": ("rows.jsonl.lz4", b"\x04\x22\x4d\x18" + LINES.encode(), "take .gz, .zst, .bz2 or .xz"),
    "a pickle": ("rows.pkl", pickle.dumps(ROWS), "is a pickle: save the rows as JSON lines or Parquet"),
    "numpy's file": ("rows.npy", b"\x93NUMPY\x01\x00", "is an array of numpy"),
    "YAML": ("rows.yaml", "- prompt: Who?\n  completion: Mira.\n", "this looks like YAML: save the rows as JSON lines"),
    "XML": ("rows.xml", "<?xml version='1.0'?><Error/>", "this is XML or HTML: save the rows as JSON lines"),
    "comments": ("rows.jsonl", "// my rows\n" + LINES, "line 1: not JSON: Expecting value at column 1; JSON has no comments"),
    "two rows on one line": (
        "rows.jsonl",
        LINES + json.dumps(ROWS[0]) * 2 + "\n",
        f"line {COUNT + 1}: not JSON: Extra data at column {len(json.dumps(ROWS[0])) + 1}; put each row on a line of its own",
    ),
    "a write that was cut short": ("rows.jsonl", LINES.encode() + b"\0" * 512, "it holds NUL bytes"),
    "a value that only Python knows": ("rows.jsonl", LINES + "{'prompt': nan}\n", "this is Python's notation: write the rows"),
    "a key twice": (
        "rows.jsonl",
        LINES + '{"prompt": "Who?", "prompt": "Where?", "completion": "A."}\n',
        f"line {COUNT + 1}: an object has the key prompt twice: keep one of them",
    ),
    "a key of a turn twice": (
        "rows.jsonl",
        '{"messages": [{"role": "user", "content": "Who?", "content": "Where?"}]}\n',
        "line 1: an object has the key content twice",
    ),
    "a key twice in Python's notation": ("rows.jsonl", LINES + "{'prompt': 'Who?', 'prompt': 'Where?'}\n", "key prompt twice"),
    "a key twice in a pretty-printed file": ("rows.json", '[\n{\n"a": 1,\n"a": 2\n}\n]', "an object has the key a twice"),
    "two columns of one name in parquet": ("rows.parquet", twice_named(), "it has two columns of one name"),
    "double quotes that are never closed": (
        "rows.csv",
        csv() + '"Who?,Mira.\nWho?,Mira.\n',
        f"line {COUNT + 2}: not CSV: unexpected end of data; the double quotes that a cell of this line begins with",
    ),
    "double quotes behind a backslash": ("rows.csv", csv() + '"Who \\"x\\"?",Mira.\n', 'are written twice ("")'),
    "a comma in a cell without quotes": (
        "rows.csv",
        csv() + "Who, then?,Mira.\n",
        "a cell that holds a , stands in double quotes",
    ),
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


def test_files_of_two_shapes_lose_no_row_in_silence(prepare: Prepare) -> None:
    turns = [{"role": "user", "content": "Qui ?"}, {"role": "assistant", "content": "Moi."}]
    files: dict[str, bytes | str] = {"a.jsonl": LINES, "b.jsonl": 2 * (json.dumps({"messages": turns}) + "\n")}
    with pytest.raises(StepFailed, match=r"40 of 42 rows can't be used: 40 OtherColumns \(a\.jsonl line 1 "):
        prepare(files, format="Messages")
    written = prepare(files)
    assert (written.facts.format, written.facts.rows, written.facts.train_rows) == ("PromptCompletion", COUNT + 2, COUNT)
    assert written.dropped == {"OtherColumns": (2, "b.jsonl line 1")}


def test_files_that_are_not_read_are_named(prepare: Prepare) -> None:
    files = {"train.jsonl": LINES, "test.jsonl": LINES, "notes.txt": "x", "rows.xlsx": b"PK", "README.md": "", "LICENSE": ""}
    assert prepare(files).facts.unread_files == ("notes.txt", "rows.xlsx", "test.jsonl")


def test_what_programs_keep_for_themselves_is_no_data(prepare: Prepare) -> None:
    copies = (".ipynb_checkpoints/rows-checkpoint.jsonl", "._rows.jsonl", "__MACOSX/rows.jsonl", ".cache/rows.jsonl")
    assert prepare({"rows.jsonl": LINES, **dict.fromkeys(copies, LINES)}).facts.rows == COUNT


def test_lines_of_a_text_file_end_where_those_of_json_do(prepare: Prepare) -> None:
    lines = "".join(json.dumps({"prompt": f"Who\u2028{n}?", "completion": ""}, ensure_ascii=False) + "\n" for n in range(3))
    with pytest.raises(StepFailed, match=r"3 NoAnswer \(rows\.txt line 1 "):
        prepare({"rows.txt": lines})


@pytest.mark.parametrize("missing", ["nan", "NaN", "NULL", "<NA>", "#N/A"])
def test_what_stands_for_an_empty_cell_is_no_answer(prepare: Prepare, missing: str) -> None:
    written = prepare({"rows.csv": csv() + f"Who?,{missing}\n"})
    assert written.dropped == {"NoAnswer": (1, f"rows.csv line {COUNT + 2}")}


def test_a_file_without_a_header_is_told_of_it(prepare: Prepare) -> None:
    with pytest.raises(StepFailed, match="the file's first line is taken for its header"):
        prepare({"rows.csv": csv().partition("\n")[2]})


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
