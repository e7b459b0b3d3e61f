"""What becomes of a tiny random model of each family: trained, merged, evaluated.

`python -m tests.trainer.architectures` writes the table in docs/architectures.md; stages/test_architectures.py holds its cells.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.trainer.conftest import train_tokenizer
from tests.trainer.entries import context, prepare
from tests.trainer.families import FAMILIES, save

from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.stages import evaluate, merge, train
from finetune_trainer.training.trainable import check_trainable

TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"
METHODS = ("LoRA", "QLoRA", "Full")
WORKS = "works"
HEAD = """# Architectures

A tiny random model of each family (`tests/trainer/families.py`) goes through the pods' programs on a CPU: prepare's check,
train, merge with its proofs, scores of base and merged model. The tests that ran wrote this table
(`python -m tests.trainer.architectures`), and each holds its cell. What is refused says so in prepare, before a GPU is taken.

"""


def outcome(family: str, method: str, folder: Path) -> str:
    """WORKS, or the sentence of prepare. A later failure is raised."""
    claims = folder / "mounts" / "claims"
    for claim in ("data", "store", "models"):
        (claims / claim).mkdir(parents=True)
    tokenizer, model = train_tokenizer(), claims / "models" / "tiny"
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    save(family, model, **ends)
    tokenizer.save_pretrained(model)
    run = run_config(method)
    prepare(run, folder)
    at = context(run, "train", folder)
    try:
        check_trainable(run, at.inputs.data()[0], model)
    except StepFailed as refused:
        return refused.message
    train.run(at)
    merge.run(context(run, "merge", folder))
    evaluate.run(context(run, "evaluate", folder))
    return WORKS


def run_config(method: str) -> RunConfig:
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
    return RunConfig.model_validate(fields)


def cells() -> dict[tuple[str, str], str]:
    """What the table says, by family and method."""
    lines = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    (_, *methods), *rows = lines
    return {(family, method): said for family, *told in rows for method, said in zip(methods, told, strict=True)}


def write(found: dict[tuple[str, str], str]) -> None:
    """Families that were run with every method, one a row."""
    rows = [["family", *METHODS]]
    rows += [[f, *(found[f, m] for m in METHODS)] for f in FAMILIES if all((f, m) in found for m in METHODS)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    TABLE.write_text(HEAD + "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n")


def main() -> None:
    found = {}
    for family in FAMILIES:
        for method in METHODS:
            with tempfile.TemporaryDirectory() as folder:
                found[family, method] = outcome(family, method, Path(folder))
                print(family, method, found[family, method], file=sys.stderr)
    write(found)


if __name__ == "__main__":
    main()
