"""What can be told of a model before a GPU is taken: whether llama.cpp's converter knows it, whether a teacher fits it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.export import llamacpp
from finetune_trainer.failures import StepFailed

# What it says of architectures and of tokenizers that it doesn't know. Any other failure is none of the model's.
REFUSALS = ("is not supported", "pre-tokenizer was not recognized")
SECONDS = 300


def check(model_folder: Path, scratch: Path) -> None:
    """Convert the vocabulary alone. Raises StepFailed ModelNotConvertible; does nothing where there is no converter."""
    converter = llamacpp.folder() / "convert_hf_to_gguf.py"
    if not converter.is_file():
        return
    vocabulary = ["--vocab-only", "--outfile", str(scratch / "vocab.gguf")]
    try:
        done = subprocess.run(
            [sys.executable, str(converter), str(model_folder), *vocabulary],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return  # a slow machine says nothing about the model
    if done.returncode == 0:
        return
    refusal = next((line for line in reversed(done.stderr.splitlines()) if any(r in line for r in REFUSALS)), None)
    if refusal is None:
        print(done.stderr[-2000:], file=sys.stderr)
        return
    raise StepFailed(
        StepReason.ModelNotConvertible,
        f"spec.artifacts asks for GGUF, which llama.cpp can't make of this model ({refusal.rpartition(':')[2].strip()}):"
        " take out the GGUF artifacts or take another model",
    )
