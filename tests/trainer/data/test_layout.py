"""Which files are a subset's and a split's: by README.md, by names, and as the datasets library saves them."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.data.layout import Choice, choose, split_of
from finetune_trainer.data.rows import is_data_file, read_rows
from finetune_trainer.failures import StepFailed

FIELD = "spec.dataset.split"
CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: [main/test-*, extra/hard.jsonl]}
- config_name: socratic
  data_dir: socratic
---
# Questions
"""
PATHS = (
    "main/train-00000-of-00002.parquet",
    "main/train-00001-of-00002.parquet",
    "main/test-00000-of-00001.parquet",
    "extra/hard.jsonl",
    "socratic/train.jsonl",
    "socratic/dev.jsonl",
)


@pytest.mark.parametrize(
    ("subset", "split", "expected"),
    [
        ("main", None, PATHS[:2]),
        ("main", "test", (PATHS[3], PATHS[2])),
        ("socratic", None, PATHS[4:5]),
        ("socratic", "validation", PATHS[5:]),
    ],
)
def test_the_card_names_subsets_and_splits(subset: str, split: str | None, expected: tuple[str, ...]) -> None:
    assert tuple(choose(PATHS, CARD, Choice(FIELD, subset, split))) == expected


@pytest.mark.parametrize(
    ("paths", "split", "expected"),
    [
        (("train.jsonl", "test.jsonl", "dev.csv"), None, ["train.jsonl"]),
        (("train.jsonl", "test.jsonl", "dev.csv"), "validation", ["dev.csv"]),
        (("a.jsonl", "b.jsonl"), None, ["a.jsonl", "b.jsonl"]),
        (("a.jsonl", "b.jsonl"), "train", ["a.jsonl", "b.jsonl"]),
        (("test/a.jsonl", "test/b.jsonl"), None, ["test/a.jsonl", "test/b.jsonl"]),
        (("data/train/x.parquet", "data/test/x.parquet"), "test", ["data/test/x.parquet"]),
        (
            ("data/train_sft-00000-of-00001.parquet", "data/gen-00000-of-00001.parquet"),
            "gen",
            ["data/gen-00000-of-00001.parquet"],
        ),
        (("latest.jsonl", "devices.jsonl"), None, ["devices.jsonl", "latest.jsonl"]),
    ],
)
def test_names_tell_the_split(paths: tuple[str, ...], split: str | None, expected: list[str]) -> None:
    assert choose(paths, "", Choice(FIELD, None, split)) == expected


def test_a_folder_is_a_subset() -> None:
    paths = ("en/train.jsonl", "en/test.jsonl", "data/de/train.jsonl")
    assert choose(paths, "", Choice(FIELD, "de")) == ["data/de/train.jsonl"]
    assert choose(paths, "", Choice(FIELD, "en", "test")) == ["en/test.jsonl"]


@pytest.mark.parametrize(
    ("card", "subset", "split", "reason", "said"),
    [
        (
            CARD,
            None,
            None,
            "DatasetSubsetUnknown",
            "spec.dataset.subset: the dataset has several subsets; name one of: main, soc",
        ),
        (CARD, "other", None, "DatasetSubsetUnknown", "there is no subset other; name one of: main, socratic"),
        (CARD, "main", "dev", "DatasetSplitUnknown", "spec.dataset.split: there is no split dev; name one of: test, train"),
        ("", "fr", None, "DatasetSubsetUnknown", "there is no folder fr; name one of: extra, main, socratic"),
        (
            "---\n: [",
            "main",
            "dev",
            "DatasetSplitUnknown",
            "name one of: test, train",
        ),  # a card that can't be read says nothing
    ],
)
def test_what_is_not_there_is_answered_with_what_is(
    card: str, subset: str | None, split: str | None, reason: str, said: str
) -> None:
    with pytest.raises(StepFailed) as caught:
        choose(PATHS, card, Choice(FIELD, subset, split))
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_DATA, reason)
    assert said in caught.value.message


def test_a_file_name_counts_for_more_than_its_folder() -> None:
    assert split_of("test/train.jsonl") == "train"


def test_what_the_datasets_library_saves_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"prompt": f"question {n}", "completion": "yes"} for n in range(5)]
    saved = DatasetDict({"train": Dataset.from_list(rows[:3]), "test": Dataset.from_list(rows[3:])})
    saved.save_to_disk(tmp_path, num_shards={"train": 2, "test": 1})
    files = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if is_data_file(p.name)]
    assert len(files) == 3
    for split, expected in (("train", rows[:3]), ("test", rows[3:])):
        chosen = choose(files, "", Choice(FIELD, None, split))
        assert [row.values for row in read_rows(tmp_path, tuple(chosen)).rows] == expected


def test_an_arrow_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(StepFailed, match=r"rows\.arrow: not an Arrow stream"):
        read_rows(tmp_path, ("rows.arrow",))
