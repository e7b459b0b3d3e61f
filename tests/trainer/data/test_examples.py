"""Data files and formats: what rows become, what is proposed for unknown columns, which rows a split holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import DatasetFormat, Split
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.data.conversation import Example
from finetune_trainer.data.detection import detect as detect_shape
from finetune_trainer.data.examples import examples
from finetune_trainer.data.labels import check_seen, worded
from finetune_trainer.data.rows import Row, is_data_file, read_rows
from finetune_trainer.data.shape import Shape
from finetune_trainer.data.splits import hold_out, sample
from finetune_trainer.data.turns import Turn
from finetune_trainer.failures import StepFailed

AUTO = DatasetFormat.AUTO
USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("assistant", "c")))


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"row {number}", value) for number, value in enumerate(values, start=1)]


def one(format: DatasetFormat, value: dict[str, Any], **options: Any) -> Example:
    (made,), _ = examples(rows(value), Shape(format, options.get("columns", {})), options.get("system_prompt"))
    return made


def detect(found: list[Row], format: DatasetFormat, columns: dict[str, str]) -> DatasetFormat:
    return detect_shape(found, format, columns).format


def turns(example: Example) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in example.turns]


# ── Formats ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("format", "row", "expected"),
    [
        (
            "Messages",
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            [("user", "a"), ("assistant", "b")],
        ),
        (
            "Messages",
            {"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'},
            [("user", "a"), ("assistant", "b")],
        ),
        (
            "Messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}]},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "never answered"},
                ]
            },
            [("user", "a"), ("assistant", "b")],
        ),
        ("PromptCompletion", {"prompt": "a", "completion": "b"}, [("user", "a"), ("assistant", "b")]),
        (
            "PromptCompletion",
            {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
            [("user", "a"), ("assistant", "b")],
        ),
        ("PromptCompletion", {"prompt": "2 + 2", "completion": 4}, [("user", "2 + 2"), ("assistant", "4")]),
        (
            "Alpaca",
            {"instruction": "Translate.", "input": "dog", "output": "Hund"},
            [("user", "Translate.\n\ndog"), ("assistant", "Hund")],
        ),
        ("Alpaca", {"instruction": "Sing.", "input": "", "output": "La"}, [("user", "Sing."), ("assistant", "La")]),
        ("Alpaca", {"instruction": "Sing.", "output": "La"}, [("user", "Sing."), ("assistant", "La")]),
        (
            "ShareGPT",
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            [("user", "a"), ("assistant", "b")],
        ),
        ("Classification", {"text": "good", "label": 1}, [("user", "good"), ("assistant", "1")]),
        ("Preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, [("user", "a"), ("assistant", "b")]),
    ],
)
def test_rows_become_turns(format: str, row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert turns(one(DatasetFormat(format), row)) == expected
    assert detect(rows(row), AUTO, {}) == format


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "a", "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # the prompt is told twice
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    ],
)
def test_every_form_of_a_preference_gives_the_same(row: dict[str, Any]) -> None:
    assert detect(rows(row), AUTO, {}) is DatasetFormat.PREFERENCE
    example = one(DatasetFormat.PREFERENCE, row)
    assert turns(example) == [("user", "a"), ("assistant", "b")]
    assert example.rejected == "c"


def test_a_preference_keeps_the_turns_before_it() -> None:
    row = {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}
    example = one(DatasetFormat.PREFERENCE, row, system_prompt="S")
    assert [turn.role for turn in example.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert example.rejected == "c"


def test_preferences_without_a_difference_are_counted_not_learned() -> None:
    same = {"prompt": "a", "chosen": "b", "rejected": "b"}
    lists = {"chosen": [USER, GOOD], "rejected": [USER, GOOD]}
    made, notes = examples(rows(same, lists, {**same, "rejected": " "}), Shape(DatasetFormat.PREFERENCE), None)
    assert (made, [note.cause for note in notes]) == ([], ["SameAnswers", "SameAnswers", "NoAnswer"])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "a", "completion": "b", "label": "True"},  # from csv
        {"prompt": [USER], "completion": [GOOD], "label": True},
    ],
)
def test_a_label_that_is_true_or_false_makes_an_unpaired_preference(row: dict[str, Any]) -> None:
    assert detect(rows(row, {**row, "label": False}), AUTO, {}) is DatasetFormat.UNPAIRED_PREFERENCE
    example = one(DatasetFormat.UNPAIRED_PREFERENCE, row)
    assert (turns(example), example.desirable) == ([("user", "a"), ("assistant", "b")], True)


@pytest.mark.parametrize("label", [1, "1", "x", None])
def test_other_labels_beside_prompt_and_completion_are_passed_over(label: Any) -> None:
    row = {"prompt": "a", "completion": "b", "label": label}
    assert detect(rows(row, {**row, "label": True}), AUTO, {}) is DatasetFormat.PROMPT_COMPLETION


def test_labels_of_preferences_under_another_name_and_as_numbers() -> None:
    row = {"prompt": "a", "completion": "b", "good": False}
    assert detect(rows(row), AUTO, {"label": "good"}) is DatasetFormat.UNPAIRED_PREFERENCE
    for label, expected in ((1, True), (0.0, False), ("0", False), (" TRUE", True)):
        made = one(DatasetFormat.UNPAIRED_PREFERENCE, row | {"good": label}, columns={"label": "good"})
        assert made.desirable is expected


def test_a_label_that_is_true_or_false_does_not_disturb_classification() -> None:
    assert detect(rows({"text": "a", "label": True}), AUTO, {}) is DatasetFormat.CLASSIFICATION


def test_text_stays_text() -> None:
    assert one(DatasetFormat.TEXT, {"text": " as it is\n"}) == Example("row 1", (), text=" as it is\n", plain=True)
    assert detect(rows({"text": "a"}), AUTO, {}) is DatasetFormat.TEXT


def test_columns_are_taken_from_their_own_names() -> None:
    columns = {"prompt": "question", "completion": "answer"}
    row = {"question": "a", "answer": "b"}
    assert detect(rows(row), AUTO, columns) is DatasetFormat.PROMPT_COMPLETION
    assert turns(one(DatasetFormat.PROMPT_COMPLETION, row, columns=columns)) == [("user", "a"), ("assistant", "b")]
    dolly = {"instruction": "Do.", "context": "it", "response": "Done", "category": "x"}
    columns = {"input": "context", "output": "response"}
    assert detect(rows(dolly), AUTO, columns) is DatasetFormat.ALPACA
    assert turns(one(DatasetFormat.ALPACA, dolly, columns=columns)) == [("user", "Do.\n\nit"), ("assistant", "Done")]


def test_a_system_prompt_goes_where_none_is() -> None:
    asked = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert turns(one(DatasetFormat.MESSAGES, asked, system_prompt="S"))[0] == ("system", "S")
    own = {"messages": [{"role": "system", "content": "own"}, *asked["messages"]]}
    assert turns(one(DatasetFormat.MESSAGES, own, system_prompt="S"))[0] == ("system", "own")


def test_rows_without_prompt_or_answer_are_counted_not_learned() -> None:
    made, notes = examples(
        rows({"prompt": "a", "completion": " "}, {"prompt": None, "completion": "b"}, {"prompt": "a", "completion": "b"}),
        Shape(DatasetFormat.PROMPT_COMPLETION),
        None,
    )
    assert [(note.cause, note.place) for note in notes] == [("NoAnswer", "row 1"), ("NoQuestion", "row 2")]
    assert made[0].turns[1] == Turn("assistant", "b")


@pytest.mark.parametrize(
    ("format", "row", "said"),
    [
        ("Messages", {"messages": "not a list"}, "messages is text but not a JSON list"),
        ("Messages", {"messages": [{"role": "wizard", "content": "a"}]}, "messages, turn 1: role must be one of"),
        ("Messages", {"messages": ["a"]}, "messages must be a list of turns"),
        ("PromptCompletion", {"prompt": "a", "completion": ["b"]}, "completion must be text, not list"),
        ("Preference", {"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}, "but for one last answer"),
        ("UnpairedPreference", {"prompt": "a", "completion": "b", "label": 2}, "label must be true, of a desirable answer"),
        ("UnpairedPreference", {"prompt": "a", "completion": "b", "label": None}, "label must be true"),
        ("Preference", {"chosen": "b", "rejected": "c"}, "name its column: spec.dataset.columns: {prompt: …}"),
    ],
)
def test_malformed_rows_are_named_without_their_content(format: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(StepFailed) as caught:
        examples(rows(row), Shape(DatasetFormat(format)), None)
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_DATA, "DatasetRowInvalid")
    assert caught.value.message.startswith("spec.dataset: row 1: ")
    assert said in caught.value.message
    assert "wizard" not in caught.value.message


@pytest.mark.parametrize(
    ("found", "format", "columns", "said"),
    [
        (("question", "answer"), "Auto", {}, "write spec.dataset.columns: {prompt: question, completion: answer}"),
        (
            ("instruction", "response"),
            "Alpaca",
            {},
            "format Alpaca needs output; write spec.dataset.columns: {output: response}",
        ),
        (("a", "b"), "Auto", {}, "{prompt: <your prompt column>, completion: <your completion column>}"),
        (("review", "sentiment"), "Classification", {}, "{text: review, label: sentiment}"),
        (("q", "answer"), "Auto", {"prompt": "query"}, "spec.dataset.columns names query, which no row has"),
        ((), "Auto", {}, "the rows have the columns (none)"),
    ],
)
def test_unknown_columns_get_the_entry_to_write(
    found: tuple[str, ...], format: str, columns: dict[str, str], said: str
) -> None:
    with pytest.raises(StepFailed) as caught:
        detect(rows(dict.fromkeys(found, "x")), DatasetFormat(format), columns)
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_DATA, "DatasetColumnsUnknown")
    assert said in caught.value.message


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "c"], "completion": ["b", "d"]}), path)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda p: p.write_text('{"prompt": "a", "completion": "b"}\n\n{"prompt": "c", "completion": "d"}'),
    "bom.jsonl": lambda p: p.write_text('\ufeff{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'),
    "rows.json": lambda p: p.write_text(json.dumps([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])),
    "nested.json": lambda p: p.write_text(
        json.dumps({"data": [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]})
    ),
    "lines.json": lambda p: p.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'),
    "rows.csv": lambda p: p.write_text('prompt,completion\na,b\n"c",d\n'),
    "rows.tsv": lambda p: p.write_text("prompt\tcompletion\na\tb\nc\td\n"),
    "rows.parquet": write_parquet,
    "key-of-a-config-map": lambda p: p.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}'),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    read = read_rows(tmp_path, (name,)).rows
    assert [row.values for row in read] == [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    assert read[0].place.startswith(name)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl line 2: not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl line 2: must hold an object with columns, not list"),
        ("a.jsonl", b'{"a": "\xff"}\n', "a.jsonl: byte 7 (in line 1) is not UTF-8"),
        ("a.json", b'[\n{"a": 1},\n{"a" 2}]', "a.json line 3: not JSON"),
        ("a.json", b"3", "a.json: must hold a list of objects"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "a.csv line 3: more cells than the header has names"),
        ("a.csv", b"a,b\n1\n", "a.csv line 2: fewer cells"),
        ("a.csv", b'a,b\n1,"2\n', "a.csv line 2: not CSV"),
        ("a.parquet", b"nothing of the kind", "a.parquet: not Parquet"),
    ],
)
def test_unreadable_files_are_named_with_the_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StepFailed) as caught:
        read_rows(tmp_path, (name,))
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_DATA, "DatasetUnreadable")
    assert said in caught.value.message


def test_descriptions_of_a_dataset_are_no_data() -> None:
    assert is_data_file("data/train-00000.parquet")
    assert not is_data_file("dataset_infos.json")
    assert not is_data_file("README.md")


# ── Splits ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def numbered(count: int) -> list[Row]:
    return rows(*({"n": number} for number in range(count)))


def test_a_split_depends_on_the_seed_and_the_rows_only() -> None:
    held, rest = hold_out(numbered(100), Split(fraction=0.1, seed=42))
    assert [row.values["n"] for row in held] == [8, 11, 13, 16, 19, 24, 27, 49, 65, 95]  # the same on any machine
    assert len(rest) == 90
    again, _ = hold_out(numbered(100)[::-1], Split(fraction=0.1, seed=42))
    assert {row.values["n"] for row in again} == {row.values["n"] for row in held}
    other, _ = hold_out(numbered(100), Split(fraction=0.1, seed=43))
    assert {row.values["n"] for row in other} != {row.values["n"] for row in held}


def test_equal_rows_are_never_on_both_sides() -> None:
    doubled = rows(*({"n": number % 50} for number in range(150)))
    held, rest = hold_out(doubled, Split(fraction=0.1, seed=1))
    assert {row.values["n"] for row in held}.isdisjoint(row.values["n"] for row in rest)
    assert 15 <= len(held) <= 17


@pytest.mark.parametrize(("count", "fraction", "held"), [(100, 0.0, 0), (3, 0.1, 1), (1, 0.5, 0), (10, None, 1)])
def test_how_many_are_held_out(count: int, fraction: float | None, held: int) -> None:
    assert len(hold_out(numbered(count), Split(fraction=fraction))[0]) == held


def labelled(**counts: int) -> list[Row]:
    return rows(*({"text": f"{label} {n}", "label": label} for label, count in counts.items() for n in range(count)))


def count(held: list[Row]) -> Counter[str]:
    return Counter(row.values["label"] for row in held)


def test_a_stratified_split_holds_out_each_value_in_proportion() -> None:
    all_rows = labelled(common=170, rare=20, lone=1, few=9)
    held, rest = hold_out(all_rows, Split(fraction=0.1), "label")
    assert count(held) == {"common": 17, "rare": 2, "few": 1}
    assert count(rest)["lone"] == 1
    assert hold_out(all_rows[::-1], Split(fraction=0.1), "label")[0] == held[::-1], "the order of the files must not matter"
    assert hold_out(all_rows, Split(fraction=0.1, seed=7), "label")[0] != held


def test_many_small_groups_are_held_out_together_in_proportion() -> None:
    groups = {f"g{n}": 3 for n in range(20)}
    held, rest = hold_out(labelled(**groups), Split(fraction=0.1), "label")
    assert len(held) == 6
    assert set(count(rest)) == set(groups), "each value is left to be trained on"


# ── Labels ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", [1, "1", 1.0, " 1 "])
def test_labels_become_their_words(value: Any) -> None:
    made = worded(rows({"text": "good", "kind": value}, {"text": "none", "kind": None}), "kind", {"0": "bad", "1": "good"})
    assert [row.values["kind"] for row in made] == ["good", None]


def test_a_label_without_a_word_is_refused() -> None:
    with pytest.raises(StepFailed, match=r"row 1 has the label 2, which spec\.dataset\.labels does not name \(it names 0, 1\)"):
        worded(rows({"text": "good", "label": 2}), "label", {"0": "bad", "1": "good"})


def test_truth_values_are_named_as_json_spells_them() -> None:
    assert worded(rows({"label": True}), "label", {"true": "spam"})[0].values == {"label": "spam"}


def test_a_label_that_was_not_trained_is_refused() -> None:
    trained = labelled(good=3, bad=3)
    assert check_seen(trained, {"test": labelled(good=1), "validation": []}, "label") == 2
    with pytest.raises(StepFailed, match=r"validation: row 2 has the label ugly, which no training row") as caught:
        check_seen(trained, {"test": [], "validation": labelled(good=1, ugly=1)}, "label")
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_DATA, "DatasetLabelUnknown")


def test_a_sample_keeps_the_order() -> None:
    chosen = [row.values["n"] for row in sample(numbered(100), 10, 42)]
    assert len(chosen) == 10
    assert chosen == sorted(chosen)
    assert sample(numbered(5), 10, 42) == numbered(5)
    assert sample(numbered(5), None, 42) == numbered(5)
