"""Each family goes through the pods' programs as docs/architectures.md says, and none fails after prepare."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.trainer.architectures import GGUF, METHODS, cells, outcome
from tests.trainer.pods import need_llama_cpp

from finetune_trainer.contract.pod import ENV_GRACE_SECONDS

FAST = {("mixtral", "LoRA"), ("gemma2", "QLoRA"), ("gpt2", "Full"), ("opt", GGUF)}
CELLS = cells()


@pytest.mark.filterwarnings("ignore")  # of each family's own configuration
@pytest.mark.parametrize(
    ("family", "column"),
    [pytest.param(*cell, marks=[] if cell in FAST else [pytest.mark.slow]) for cell in CELLS],
)
def test_a_family_ends_as_the_table_says(family: str, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_GRACE_SECONDS, "120")
    if column == GGUF:
        need_llama_cpp("convert_hf_to_gguf.py", "bin/llama-quantize")
    assert outcome(family, column, tmp_path) == CELLS[family, column]


def test_the_table_has_twenty_families() -> None:
    assert len(CELLS) >= 20 * len(METHODS)
    assert CELLS.keys() >= FAST
