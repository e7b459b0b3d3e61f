"""What becomes of a tiny random model of each family: trained, merged, evaluated, and made a GGUF file.

`python -m tests.trainer.architectures` writes the table in docs/architectures.md; stages/test_architectures.py holds its cells.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from localcluster import settings
from tests.trainer import pieces
from tests.trainer.conftest import SMOLLM, train_tokenizer
from tests.trainer.entries import context, prepare
from tests.trainer.families import FAMILIES, save
from tests.trainer.pods import need_llama_cpp

from finetune_trainer.contract.run import RunConfig
from finetune_trainer.export import convertible
from finetune_trainer.failures import StepFailed
from finetune_trainer.stages import evaluate, merge, quantize, train
from finetune_trainer.training.trainable import check_trainable

TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"
METHODS = ("LoRA", "QLoRA", "Full")
GGUF = "GGUF"
COLUMNS = (*METHODS, GGUF)
WORKS, NOT_TRIED = "works", "not tried yet"
WIDE = {"sliding_window": 512}  # no row fills it: llama.cpp leaves out the windows of some families (Mistral, Mixtral)
MORE_TOKENS = {"glm4": ("<|user|>", "<|observation|>")}  # that llama.cpp's converter looks for by name
STAGES: dict[str, Any] = {"train": train, "merge": merge, "quantize": quantize, "evaluate": evaluate}
Q8 = {"name": "q8", "format": "GGUF", "quantization": "Q8_0"}
HEAD = """# Architectures

A tiny random model of each family (`tests/trainer/families.py`) goes through the pods' programs on a CPU: prepare's check,
train, merge with its proofs, scores of base and merged model. The tests that ran wrote this table
(`python -m tests.trainer.architectures`), and each holds its cell. What is refused says so in prepare, before a GPU is taken.
The last column is a GGUF file (Q8_0) of a model that LoRA trained, with its proofs against the merged model and its scores.
Its window is wider than the rows, as llama.cpp attends to all of a row of Mistral or Mixtral.
Its tokenizer is SmolLM2's, or for Gemma, Gemma 2, Phi 3 and Ernie 4.5 a small one of sentencepiece.
Qwen 2 has no cell there, as transformers splits its text in a way that llama.cpp knows with Qwen 2's own vocabulary alone.

"""


def outcome(family: str, column: str, folder: Path) -> str:
    """WORKS, or the sentence of prepare. A later failure is raised."""
    return artifact_outcome(family, folder) if column == GGUF else method_outcome(family, column, folder)


def method_outcome(family: str, method: str, folder: Path) -> str:
    """What becomes of a model with a vocabulary of 512 by this method."""
    return _through(run_config(method), save_with(family, train_tokenizer(), folder), ("evaluate",), folder)


def artifact_outcome(family: str, folder: Path) -> str:
    """What becomes of a model with a tokenizer that llama.cpp's converter knows."""
    made = gguf_tokenizer(family, folder)
    model = save_with(family, made, folder, **WIDE)
    if (folder / pieces.FILE).is_file():
        (folder / pieces.FILE).rename(model / pieces.FILE)
    return _through(run_config("LoRA", artifacts=[Q8]), model, ("quantize-q8", "evaluate-q8"), folder)


def gguf_tokenizer(family: str, folder: Path) -> Any:
    """SmolLM2's tokenizer, as the converter knows tokenizers by a hash, or one of sentencepiece with its file in `folder`."""
    from transformers import AutoTokenizer

    if family in pieces.FAMILIES:
        return pieces.tokenizer(family, folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(settings.read().hub_directory / SMOLLM)
    tokenizer.add_tokens([*MORE_TOKENS.get(family, ())], special_tokens=True)
    return tokenizer


def save_with(family: str, tokenizer: Any, folder: Path, **more: Any) -> Path:
    """A model of the family for this tokenizer, on a claim below `folder`."""
    claims = folder / "mounts" / "claims"
    for claim in ("data", "store", "models"):
        (claims / claim).mkdir(parents=True)
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model = save(family, claims / "models" / "tiny", vocab_size=len(tokenizer), **ends, **more)
    tokenizer.save_pretrained(model)
    return model


def _through(run: RunConfig, model: Path, steps: tuple[str, ...], folder: Path) -> str:
    prepare(run, folder)
    at = context(run, "train", folder)
    try:
        check_trainable(run, at.inputs.data()[0], model)
        if run.artifacts:
            convertible.check(model, at.scratch, [artifact.quantization for artifact in run.artifacts])
    except StepFailed as refused:
        return refused.message
    for name in ("train", "merge", *steps):
        STAGES[name.partition("-")[0]].run(context(run, name, folder))
    return WORKS


def run_config(method: str, **more: Any) -> RunConfig:
    training = {"method": method, "precision": "FP32", "maxSteps": 3, "globalBatchSize": 4, "maxLength": 128}
    fields: dict[str, Any] = {
        "namespace": "team",
        "name": "job",
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"uri": "pvc://data/rows.jsonl"},
        "training": training | {"learningRate": 1e-2},
        "devices": {"gpus": 0},
        "store": {"uri": "pvc://store/job"},
        "generation": {"maxNewTokens": 8},
    }
    return RunConfig.model_validate(fields | more)


def cells() -> dict[tuple[str, str], str]:
    """What the table says, by family and column."""
    lines = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    (_, *columns), *rows = lines
    said = {(family, column): cell for family, *told in rows for column, cell in zip(columns, told, strict=True)}
    return {key: cell for key, cell in said.items() if cell != NOT_TRIED}


def write(found: dict[tuple[str, str], str]) -> None:
    """One row for each family."""
    rows = [["family", *COLUMNS]]
    rows += [[f, *(found.get((f, c), NOT_TRIED) for c in COLUMNS)] for f in FAMILIES]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    TABLE.write_text(HEAD + "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n")


def main(families: list[str], columns: list[str]) -> None:
    """Run these, or all, and write the table anew after each, with what it said of the others."""
    need_llama_cpp("convert_hf_to_gguf.py", "bin/llama-quantize")
    found = cells()
    for family in families or FAMILIES:
        for column in columns or COLUMNS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found[family, column] = outcome(family, column, Path(folder))
                except Exception:  # told, and left out of the table
                    traceback.print_exc()
                    continue
                print(family, column, found[family, column], file=sys.stderr)
                write(found)


if __name__ == "__main__":
    named = sys.argv[1:]
    main([name for name in named if name in FAMILIES], [name for name in named if name in COLUMNS])
