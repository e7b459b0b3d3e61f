"""Quantized safetensors folders: by llm-compressor in compressed-tensors' format, or by bitsandbytes.

FP8    8-bit floating-point weights, activations rounded to the same as they come; needs no rows
W4A16  4-bit integer weights in groups, chosen by GPTQ so that the answers to training rows change least
NF4    4-bit weights as QLoRA trains on them, double quantized

llm-compressor's AWQ is not among them: version 0.14 pins host memory for a GPU, and so does not run on CPUs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer import calibration
from finetune_trainer.context import Context
from finetune_trainer.contract import Artifact, Check, ExitCode, Method
from finetune_trainer.failures import StepFailed
from finetune_trainer.server_files import make_readable

if TYPE_CHECKING:
    from finetune_trainer.proof import FixedRow

GROUPS = (128, 64, 32)  # weights that share one scale; those that vLLM's kernels have, best first
HEAD = "lm_head"  # stays as it is: few of the weights, and the most sensitive ones


def make(context: Context, artifact: Artifact, merged: Path, folder: Path) -> dict[str, str]:
    """Write the quantized model with its tokenizer; returns what the manifest should note."""
    from transformers import AutoTokenizer

    context.progress(f"quantizing to {artifact.quantization}")
    write = {"FP8": _write_fp8, "W4A16": _write_w4a16, "NF4": _write_nf4}[artifact.quantization]
    notes = write(context, merged, folder)
    AutoTokenizer.from_pretrained(merged).save_pretrained(folder)
    make_readable(folder)
    return notes


def _write_fp8(_context: Context, merged: Path, folder: Path) -> dict[str, str]:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    network = _dense(merged)
    oneshot(model=network, recipe=QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=[HEAD]))
    network.save_pretrained(folder, save_compressed=True)
    return {"scheme": "FP8_DYNAMIC"}


def _write_w4a16(context: Context, merged: Path, folder: Path) -> dict[str, str]:
    from compressed_tensors.quantization import preset_name_to_scheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    network = _dense(merged)
    group = group_size(network)
    scheme = preset_name_to_scheme("W4A16", ["Linear"])
    scheme.weights.group_size = group
    rows = calibration.rows(context.data()[1])
    oneshot(
        model=network,
        dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
        recipe=GPTQModifier(config_groups={"group_0": scheme}, ignore=[HEAD]),
        num_calibration_samples=len(rows),
        max_seq_length=calibration.TOKENS,
    )
    network.save_pretrained(folder, save_compressed=True)
    return {"scheme": "W4A16 by GPTQ", "groupSize": str(group), "calibrationRows": str(len(rows))}


def _write_nf4(_context: Context, merged: Path, folder: Path) -> dict[str, str]:
    import torch

    from finetune_trainer.model import Compute, load_base

    load_base(merged, Method.QLORA, Compute("cpu", torch.bfloat16)).save_pretrained(folder)
    return {"scheme": "NF4, double quantized"}


def _dense(merged: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(merged, dtype="auto", use_safetensors=True)


def group_size(network: Any) -> int:
    """The largest group that divides every row which is quantized. Raises StepFailed ConversionFailed where none does."""
    import torch

    rows = {m.in_features for n, m in network.named_modules() if isinstance(m, torch.nn.Linear) and not n.endswith(HEAD)}
    fits = [size for size in GROUPS if all(row % size == 0 for row in rows)]
    if not fits:
        message = f"W4A16 needs rows of a multiple of {GROUPS[-1]} values, and this model's have {sorted(rows)}; take FP8"
        raise StepFailed(ExitCode.VERIFICATION_FAILED, "ConversionFailed", message)
    return fits[0]


def prove(context: Context, artifact: Artifact, merged: Path, folder: Path) -> tuple[Check, ...]:
    """Read back, the folder must read text, carry the template and answer as the merged model, within its type's rounding."""
    from transformers import AutoTokenizer

    from finetune_trainer import proof

    context.progress("verifying")
    rows = proof.fixed_rows(context.data()[1])
    tokenizer: Any = AutoTokenizer.from_pretrained(merged)
    own: Any = AutoTokenizer.from_pretrained(folder)
    checks = proof.check_tokens(rows, tokenizer, "its tokenizer", lambda text: own(text, add_special_tokens=False).input_ids)
    checks += proof.check_template(tokenizer, own.chat_template)
    found = proof.likeness(rows, _logits(merged, rows), _logits(folder, rows))
    what = f"the artifact {artifact.name} answers unlike the merged model"
    return checks + proof.check_likeness(what, found, proof.LIMITS[artifact.quantization])


def _logits(folder: Path, rows: list[FixedRow]) -> list[Any]:
    """On the CPU, where compressed weights are expanded; one model at a time, as two may not fit."""
    import torch

    from finetune_trainer import proof
    from finetune_trainer.model import Compute, load_base

    network = load_base(folder, Method.LORA, Compute("cpu", torch.float32))
    return [proof.logits(network, row) for row in rows]
