"""Rows that an earlier release read right are rendered to the same bytes: a store that it filled stays in use.

tests/golden/rows holds files and what commit 4c356a9 made of them: digests of train.jsonl with validation.jsonl, and of
test.jsonl. The tokenizer is made of single bytes, so that no library's training can change them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import CHATML
from tests.trainer.data.written import byte_tokenizer

from finetune_trainer.contract.run import RunConfig
from finetune_trainer.data import dataset

GOLDEN = Path(__file__).parents[2] / "golden" / "rows"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "digests.json").read_text())
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'system' %}<<SYS>>{{ m['content'] }}<</SYS>>{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA_2, "none": None}


@pytest.mark.parametrize("case", EXPECTED)
def test_rows_are_rendered_to_the_bytes_of_an_earlier_release(
    make_run: Callable[..., RunConfig], tmp_path: Path, case: str
) -> None:
    expected = EXPECTED[case]
    run = make_run(
        dataset={"uri": f"pvc://data/{expected['file']}", "test": {"fraction": 0.25}} | expected["dataset"],
        training={"method": "LoRA", "maxLength": 2048} | expected["training"],
    )
    (tmp_path / "mounts/claims/data" / expected["file"]).write_bytes((GOLDEN / expected["file"]).read_bytes())
    splits = dataset.load(run, tmp_path / "rows", str(tmp_path / "mounts"))
    tokenizer = byte_tokenizer(TEMPLATES[expected["template"]])
    facts = dataset.render(run, splits, tokenizer, tmp_path / "data", lambda *_: None)
    found = {"source": splits.source_digest, "train": facts.train_digest, "test": facts.test_digest}
    assert found == expected["digests"]
    assert {count.cause for count in facts.dropped or ()} <= {"UndesirableTestRow"}


def test_some_were_found() -> None:
    assert len(EXPECTED) > 20
