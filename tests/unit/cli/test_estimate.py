"""`kubectl finetune estimate`: which methods fit which GPU, by the estimate that prepare makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_sentences import GOOD, write
from typer.testing import CliRunner

from finetune_operator.cli.commands import app
from finetune_trainer.memory.shape import parameters_of

MISTRAL = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32768,
}
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "Mistral-7B-v0.3": (MISTRAL, 7248023552),
    "SmolLM2-135M": (
        {
            "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_hidden_layers": 30,
            "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
        },
        134515008,
    ),
    "Mixtral-8x7B": (MISTRAL | {"vocab_size": 32000, "num_local_experts": 8}, 46702792704),
    "Qwen2.5-7B": (
        {
            "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28,
            "num_key_value_heads": 4, "vocab_size": 152064,
        },
        7615616512,
    ),
}  # fmt: skip


def rows(tmp_path: Path, *options: str, text: str = GOOD, config: dict[str, Any] | None = None) -> tuple[int, list[list[str]]]:
    """The exit status, and the cells of each row of the table."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config or MISTRAL))
    command = ["estimate", str(write(tmp_path, text)), "--config", str(path), *options]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "250"})
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in result.output.splitlines() if line.startswith("│")]
    return result.exit_code, cells


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_of_a_configuration(name: str) -> None:
    config, counted = FAMILIES[name]
    assert parameters_of(config) == pytest.approx(counted, rel=2e-3)


def test_each_method_on_each_gpu(tmp_path: Path) -> None:
    code, found = rows(tmp_path, "--gpu", "16Gi", "--gpu", "80Gi")
    assert code == 0
    fits = {(memory, method): fits for memory, method, fits, *_ in found if memory}
    assert fits == {
        ("16Gi", "QLoRA"): "yes",
        ("16Gi", "LoRA*"): "no",
        ("16Gi", "Full"): "no",
        ("80Gi", "QLoRA"): "yes",
        ("80Gi", "LoRA*"): "yes",
        ("80Gi", "Full"): "no",
    }
    notes = next(row[-1] for row in found if row[:2] == ["16Gi", "LoRA*"])
    assert "the device has 16.0 GiB" in notes
    assert all(row[6].endswith("GiB") for row in found if row[2] == "yes")


def test_the_files_own_method_decides_the_exit_status(tmp_path: Path) -> None:
    assert rows(tmp_path, "--gpu", "16Gi")[0] == 1
    assert rows(tmp_path, "--gpu", "16Gi", "--parameters", "1", "--row-tokens", "64")[0] == 0


def test_without_a_gpu_named_the_usual_ones_are_tried(tmp_path: Path) -> None:
    _, found = rows(tmp_path)
    assert list(dict.fromkeys(row[0] for row in found if row[0])) == ["16Gi", "24Gi", "48Gi", "80Gi", "141Gi"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--gpu", "large"], "--gpu large is no amount of memory; write it as 24Gi"),
        (["--config", "/none/config.json"], "/none/config.json can't be read: No such file"),
    ],
)
def test_what_can_not_be_estimated_is_one_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["estimate", str(write(tmp_path, GOOD)), *options])
    assert result.exit_code == 2
    assert sentence in result.output


def test_a_model_in_a_claim_is_looked_at_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "models/tiny/config.json").write_text(json.dumps(MISTRAL))
    file = write(tmp_path, GOOD.replace("hf://org/model", "pvc://models/tiny"))
    refused = CliRunner().invoke(app, ["estimate", str(file)])
    assert "the model pvc://models/tiny can't be looked at from here; add --config FILE" in refused.output
    found = CliRunner().invoke(app, ["estimate", str(file), "--claim", f"models={tmp_path / 'models'}"], env={"COLUMNS": "200"})
    assert "7.25 B parameters" in found.output


def test_a_configuration_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": 8}')
    result = CliRunner().invoke(app, ["estimate", str(write(tmp_path, GOOD)), "--config", str(path)])
    assert "is no decoder-only transformer: its config.json lacks num_attention_heads" in " ".join(result.output.split())
