"""Rows of several shapes in one file, or in several: the format is that of most of them, and no other row goes in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import CHATML
from tests.trainer.data.written import Written, byte_tokenizer, write_rows

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.data.detection import detect
from finetune_trainer.data.rows import Row
from finetune_trainer.failures import StepFailed

Prepare = Callable[..., Written]
MANY, FEW = 60, 2


def turns(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Who is {number}?"}, {"role": "assistant", "content": f"Mira {number}."}]


OF: dict[str, Callable[[int], dict[str, Any]]] = {
    "Messages": lambda n: {"messages": turns(n)},
    "ShareGPT": lambda n: {"conversations": [{"from": "human", "value": f"Who {n}?"}, {"from": "gpt", "value": f"M {n}."}]},
    "PromptCompletion": lambda n: {"prompt": f"Who is {n}?", "completion": f"Mira {n}."},
    "Alpaca": lambda n: {"instruction": f"Who is {n}?", "output": f"Mira {n}."},
    "Classification": lambda n: {"text": f"Row {n}", "label": ("ham", "spam")[n % 2]},
    "Text": lambda n: {"text": f"Mira {n} keeps the light."},
    "Preference": lambda n: {"prompt": f"Who is {n}?", "chosen": f"Mira {n}.", "rejected": "Nobody."},
}


@pytest.fixture
def prepare(make_run: Callable[..., RunConfig], tmp_path: Path) -> Prepare:
    """Prepare files of these rows, or one file of them, without test rows."""

    def run(*files: list[dict[str, Any]], objective: str = "SFT", **dataset: Any) -> Written:
        folder = tmp_path / "mounts/claims/data/rows"
        folder.mkdir(exist_ok=True)
        for number, rows in enumerate(files):
            (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = {"uri": "pvc://data/rows", "test": {"fraction": 0}} | dataset
        config = make_run(dataset=asked, training={"method": "LoRA", "maxLength": 2048, "objective": objective})
        return write_rows(config, tmp_path / "mounts", tmp_path, byte_tokenizer(CHATML))

    return run


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"row {number}", value) for number, value in enumerate(values, start=1)]


def made(format: str, count: int) -> list[dict[str, Any]]:
    return [OF[format](number) for number in range(count)]


MIXED = [(most, least) for most in OF for least in OF if most != least]


@pytest.mark.parametrize(("most", "least"), MIXED, ids=map(" among ".join, ((least, most) for most, least in MIXED)))
def test_the_format_is_that_of_most_rows_whichever_comes_first(most: str, least: str) -> None:
    """Rows of text and label are rows of text, too; where few rows lack the label it is meant all the same, and conversely."""
    for mixed in ([*made(least, FEW), *made(most, MANY)], [*made(most, MANY), *made(least, FEW)]):
        assert detect(rows(*mixed), DatasetFormat.AUTO, {}).format == most


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_few_rows_of_another_shape_are_counted_with_one_example(prepare: Prepare, first: bool) -> None:
    files = [made("Messages", FEW), made("PromptCompletion", MANY)]
    written = prepare(*(files if first else files[::-1]))
    assert written.facts.format == "PromptCompletion"
    assert (written.facts.rows, written.facts.train_rows) == (FEW + MANY, MANY)
    assert written.dropped == {"OtherColumns": (FEW, f"{0 if first else 1}.jsonl line 1")}


def test_half_of_the_rows_in_another_shape_are_refused_with_both_shapes(prepare: Prepare) -> None:
    with pytest.raises(StepFailed) as caught:
        prepare(made("Messages", 30) + made("PromptCompletion", 31))
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_DATA, "DatasetRowsDropped")
    assert caught.value.message == (
        "spec.dataset: 30 of 61 rows can't be used: 30 OtherColumns (0.jsonl line 1 lacks a column that its format needs);"
        " rows are taken for PromptCompletion, with prompt and completion, but 0.jsonl line 1 has messages; mend or remove"
        " them, or raise spec.dataset.maxDroppedFraction, which is 0.05"
    )


def test_columns_that_no_row_has_together_are_refused(prepare: Prepare) -> None:
    with pytest.raises(StepFailed, match=r"but 0\.jsonl line 1 has prompt: add or mend rows$") as caught:
        prepare([{"prompt": "Who?"}, {"completion": "Mira."}])
    assert caught.value.reason == "DatasetEmpty"


def test_a_shape_that_begins_late_in_the_file_is_seen(prepare: Prepare) -> None:
    late = [{"question": f"What is {n}?", "answer": "It."} for n in range(10)] * 11 + made("PromptCompletion", 400)
    written = prepare(late, maxDroppedFraction=0.3)
    assert (written.facts.format, written.facts.train_rows) == ("PromptCompletion", 400)
    assert written.dropped == {"OtherColumns": (110, "0.jsonl line 1")}


def test_empty_cells_of_a_table_with_the_columns_of_two_shapes_are_no_rows_of_either(prepare: Prepare) -> None:
    """pandas writes it so where somebody put two tables into one."""
    both = [{"messages": None, "prompt": None, "completion": None} | row for row in made("PromptCompletion", MANY)]
    written = prepare([*both, {"messages": turns(99), "prompt": None, "completion": None}])
    assert (written.facts.format, written.facts.train_rows) == ("PromptCompletion", MANY)
    assert written.dropped == {"NoQuestion": (1, f"0.jsonl line {MANY + 1}")}


def test_rows_without_an_answer_are_still_rows_of_their_format(prepare: Prepare) -> None:
    """Else the column of text beside them, which all rows have, would be learned in their place."""
    unanswered = [{"instruction": f"Who {n}?", "output": "", "text": "Who?"} for n in range(MANY)]
    with pytest.raises(StepFailed, match=r"60 NoAnswer \("):
        prepare(unanswered + [row | {"text": "Who?"} for row in made("Alpaca", FEW)])


def test_a_row_without_a_label_does_not_make_answers_to_be_avoided_ones_to_be_learned() -> None:
    labelled = [OF["PromptCompletion"](n) | {"label": n % 2 == 0} for n in range(MANY)]
    assert detect(rows(*labelled, *made("Messages", FEW)), DatasetFormat.AUTO, {}).format == "UnpairedPreference"


def test_a_few_labelled_answers_among_preferences_are_counted(prepare: Prepare) -> None:
    labelled = [OF["PromptCompletion"](n) | {"label": n % 2} for n in range(FEW)]
    written = prepare(labelled + made("Preference", MANY), objective="KTO")
    assert written.facts.format == "Preference"
    assert written.dropped == {"OtherColumns": (FEW, "0.jsonl line 1")}


def test_the_prompt_of_preferences_is_told_by_their_own_rows(prepare: Prepare) -> None:
    hub = [{"question": f"Who {n}?", "chosen_response": f"Mira {n}.", "rejected_response": "No."} for n in range(MANY)]
    written = prepare(made("Messages", FEW) + hub, objective="DPO")
    assert written.facts.format == "Preference"
    assert written.dropped == {"OtherColumns": (FEW, "0.jsonl line 1")}
    assert "Who 0?" in written.of("prompt")[0]
