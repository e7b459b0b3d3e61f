"""Whether llama.cpp's converter can make a GGUF file of a model, asked of the converter itself before a GPU is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from finetune_trainer.contract.formats import Quantization
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.export import llamacpp, skeleton
from finetune_trainer.failures import StepFailed
from finetune_trainer.memory.shape import shape_of

# How a converter ends that can't run at all: no fault of the model's.
OWN_FAULTS = ("ModuleNotFoundError", "ImportError", "SyntaxError", "MemoryError", "OSError: [Errno 28]")
FOUR_WIDTHS = ("gpt2", "gpt_bigcode", "phi")  # their files are written, but not read again, where that is not so
LOGGED = "ERROR:hf-to-gguf:"
SECONDS = 300


def check(model_folder: Path, scratch: Path, asked: Collection[Quantization]) -> None:
    """Convert all but the numbers of the model that merge would write: its configuration, tokenizer and weights' names.

    Raises StepFailed ModelNotConvertible; where there is no converter it is not asked.
    """
    config = json.loads((model_folder / "config.json").read_bytes())
    shape = shape_of(config, 0)
    if config.get("model_type") in FOUR_WIDTHS and shape.feed_forward != 4 * shape.hidden:
        raise _refused(
            asked, f"it takes each feed-forward layer of this family for {4 * shape.hidden} wide, not {shape.feed_forward}"
        )
    converter = llamacpp.folder() / "convert_hf_to_gguf.py"
    if not converter.is_file():
        return
    folder = skeleton.write(model_folder, scratch / "skeleton")
    command = [sys.executable, str(converter), str(folder), "--dry-run", "--outfile", str(scratch / "skeleton.gguf")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return  # a slow machine says nothing about the model
    if done.returncode == 0:
        return
    said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
    if done.returncode < 0 or not said or said.startswith(OWN_FAULTS):
        print(done.stderr[-2000:], file=sys.stderr)
        return
    raise _refused(asked, said.removeprefix(LOGGED).replace(f"{folder}/", "")[:300])


def _refused(asked: Collection[Quantization], why: str) -> StepFailed:
    return StepFailed(
        StepReason.ModelNotConvertible,
        f"spec.artifacts asks for GGUF ({', '.join(asked)}), which llama.cpp can't make of this model ({why}): take out the"
        " GGUF artifacts or take another model",
    )
