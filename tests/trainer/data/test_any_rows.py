"""Whatever lies in the files, preparing rows ends with a right result or a reason of ours, and every row is accounted for.

Rows, the files that hold them and their encodings are made up by Hypothesis: 200 in the fast core,
2,000 more among the slow tests.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.trainer.conftest import CHATML
from tests.trainer.data.written import byte_tokenizer

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.data import dataset
from finetune_trainer.data.ledger import Cause
from finetune_trainer.failures import StepFailed

TOKENIZERS = {"chat": byte_tokenizer(CHATML), "plain": byte_tokenizer(None)}
WORDS = ("Who keeps the light?", "Mira.", " ", "", "é🗼", "\ud800", "nan", "<|im_end|>", "a\x00b", "[]", "1.0", "no " * 200)
TEXT = st.sampled_from(WORDS) | st.text(max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0, float("nan"), 10**30]) | TEXT
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "developer", "gpt", "human", "wizard", "", None, 1])
TURN_KEYS = ("weight", "train", "reasoning_content", "tool_calls", "name", "images", "id", "text", "value", "from")
PARTS = st.fixed_dictionaries({"type": st.just("text"), "text": SCALARS})
TURNS = st.fixed_dictionaries(
    {
        "role": ROLES,
        "content": TEXT | ANYTHING | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": SCALARS}), max_size=2),
    },
    optional=dict.fromkeys(TURN_KEYS, SCALARS),
)
GOOD_TURNS = st.lists(st.sampled_from(WORDS[:2]), min_size=1, max_size=5).map(
    lambda said: [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
)
COLUMNS = ("messages", "conversations", "prompt", "completion", "instruction", "output", "input", "text", "label", "chosen",
           "rejected", "system", "history", "tools", "Prompt", " completion", "question", "id")  # fmt: skip
CELLS = TEXT | ANYTHING | st.lists(TURNS, max_size=4) | GOOD_TURNS | GOOD_TURNS.map(json.dumps)
GOOD_ROWS = st.builds(
    lambda n, more: {"prompt": f"Who {n}?", "completion": f"Mira {n}."} | more, st.integers(0, 30), st.just({})
)
ROWS = st.lists(
    st.one_of(
        st.dictionaries(st.sampled_from(COLUMNS), CELLS, max_size=4),
        st.fixed_dictionaries({"messages": GOOD_TURNS | st.lists(TURNS, max_size=4)}),
        st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}),
        GOOD_ROWS,
        GOOD_ROWS,
    ),
    max_size=8,
)
ENCODINGS = st.sampled_from([*["utf-8"] * 9, "utf-8-sig", "utf-16", "utf-32", "cp1252", "cp1251"])
NAMES = st.sampled_from(["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.txt", "rows.parquet", "rows.arrow", "key"])


RUN = {"namespace": "team", "name": "job", "model": {"uri": "pvc://m/m"}, "devices": {"gpus": 0}, "store": {"uri": "pvc://s/s"}}


def as_csv(rows: list[dict[str, Any]]) -> str:
    header = list(dict.fromkeys(name for row in rows for name in row)) or ["text"]
    cells = [[str(row.get(name, "")) for name in header] for row in rows]
    return "".join(";".join('"' + cell.replace('"', '""') + '"' for cell in line) + "\n" for line in [header, *cells])


def by_columns(rows: list[dict[str, Any]]) -> Any:
    return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else {})}


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


SHAPES: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "lines": lines,
    "array": json.dumps,
    "pretty": lambda rows: json.dumps(rows, indent=1),
    "data": lambda rows: json.dumps({"version": 1, "data": rows}),
    "splits": lambda rows: json.dumps({"train": rows, "test": rows[:1]}),
    "columns": lambda rows: json.dumps(by_columns(rows)),
    "csv": as_csv,
    "cut": lambda rows: lines(rows)[:-5],
}
SPOILED = st.sampled_from([None] * 9 + [b"\xff", b"{", b"\n\n", b"\x00"])  # what stands behind the rows
FILES = st.builds(
    lambda rows, shape, encoding, packed, name, spoiled: (rows, shape, name, content(rows, shape, encoding, packed, spoiled)),
    ROWS, st.sampled_from([*SHAPES]), ENCODINGS, st.booleans(), NAMES, SPOILED,
)  # fmt: skip
OPTIONS = st.fixed_dictionaries(
    {
        "test": st.sampled_from([{"fraction": 0.0}, {"fraction": 0.0}, {"fraction": 0.5}, {"uri": "same"}, {"split": "test"}]),
        "maxDroppedFraction": st.sampled_from([1.0, 1.0, 0.05]),
    },
    optional={
        "systemPrompt": st.just("Be short."),
        "validation": st.just({"fraction": 0.2}),
        "maxSamples": st.integers(1, 5),
        "columns": st.dictionaries(st.sampled_from(COLUMNS), st.sampled_from(COLUMNS), max_size=2),
        "format": st.sampled_from(["Auto", "Messages", "PromptCompletion", "Text", "Classification", "Preference"]),
    },
)


def content(rows: list[dict[str, Any]], shape: str, encoding: str, packed: bool, spoiled: bytes | None) -> bytes:
    raw = SHAPES[shape](rows).encode(encoding, errors="replace") + (spoiled or b"")
    return gzip.compress(raw) if packed else raw


def prepare(name: str, raw: bytes, options: dict[str, Any], tokenizer: Any) -> Any:
    """Facts of the rows of one file, or the StepFailed that refused them."""
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "mounts/claims/data").mkdir(parents=True)
        (folder / "mounts/claims/data" / name).write_bytes(raw)
        uri = f"pvc://data/{name}"
        test = {"uri": uri} if options["test"] == {"uri": "same"} else options["test"]
        run = RunConfig.model_validate(
            RUN | {"dataset": {"uri": uri} | options | {"test": test}, "training": {"method": "LoRA", "maxLength": 256}}
        )
        splits = dataset.load(run, folder / "rows", str(folder / "mounts"))
        return dataset.render(run, splits, tokenizer, folder / "data", lambda *_: None)
    except StepFailed as failure:
        return failure
    finally:
        shutil.rmtree(folder)


def check(made: Any, rows: list[dict[str, Any]] | None) -> None:
    """A reason of ours without rows in it, or facts in which each row is counted once."""
    if isinstance(made, StepFailed):
        assert made.exit_code in (ExitCode.BAD_DATA, ExitCode.BAD_CONFIG)
        assert made.message
        return
    kept = made.train_rows + made.validation_rows + made.test_rows
    apart = sum(count.rows for count in made.changed or () if count.cause == Cause.ANSWER_APART)
    dropped = sum(count.rows for count in made.dropped or ())
    assert made.rows + apart == kept + dropped
    assert made.dropped_rows == dropped
    assert made.train_rows > 0
    assert rows is None or made.rows == len(rows)


def throw(file: tuple[Any, ...], options: dict[str, Any], template: str) -> bool:
    """Whether rows came of it, and not a reason."""
    rows, shape, name, raw = file
    made = prepare(name, raw, options, TOKENIZERS[template])
    known = shape == "lines" and options["test"].keys() == {"fraction"} and "maxSamples" not in options
    check(made, rows if known and name == "rows.jsonl" and len(rows) > 1 else None)  # one object may hold columns
    return not isinstance(made, StepFailed)


def check_many(cases: settings) -> None:
    ended: list[bool] = []

    @cases
    @given(FILES, OPTIONS, st.sampled_from([*TOKENIZERS]))
    def one(file: tuple[Any, ...], options: dict[str, Any], template: str) -> None:
        ended.append(throw(file, options, template))

    one()
    assert 0.1 < sum(ended) / len(ended) < 0.9, f"of {len(ended)} cases {sum(ended)} ended right: one side is hardly tried"


SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_rows_end_right_or_with_a_reason() -> None:
    check_many(settings(SETTINGS, max_examples=200, derandomize=True))


@pytest.mark.slow
def test_ten_times_as_many_rows_end_right_or_with_a_reason() -> None:
    check_many(settings(SETTINGS, max_examples=2000))
