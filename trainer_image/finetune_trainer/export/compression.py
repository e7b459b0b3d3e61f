"""Quantized safetensors folders: by llm-compressor in compressed-tensors' format, or by bitsandbytes.

FP8    8-bit floating-point weights, activations rounded to the same as they come; needs no rows
W4A16  4-bit integer weights in groups, chosen by GPTQ so that the answers to training rows change least
AWQ    the same with a zero point for each group, rounded after channels that training rows use most were scaled up
NF4    4-bit weights as QLoRA trains on them, double quantized; what was trained on NF4 is taken off its values first
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from finetune_trainer.context import Context
from finetune_trainer.contract.adapters import Quantization
from finetune_trainer.contract.artifacts import Artifact
from finetune_trainer.contract.reports import Check
from finetune_trainer.contract.training import Method
from finetune_trainer.export import calibration, proof, quantizable
from finetune_trainer.export.proof import FixedRow, Limits
from finetune_trainer.export.quantizable import HEAD, group_size
from finetune_trainer.export.server_files import make_readable

AWQ_ROWS = 16  # as many as its paper (arXiv 2306.00978) needs; each goes through every layer twenty times

# SmolLM2-135M has divergences of 0.06, 0.17, 0.23 and 0.60, ratios of 1.05, 1.10, 1.17 and 1.45.
LIMITS = {
    "FP8": Limits(0.3, 0.8, 1.3),
    "W4A16": Limits(0.6, 0.7, 1.8),
    "AWQ": Limits(0.6, 0.7, 1.8),
    "NF4": Limits(1.5, 0.6, 2.5),
}


def make(context: Context, artifact: Artifact, merged: Path, folder: Path) -> dict[str, str]:
    """Write the quantized model with its tokenizer; returns what the manifest should note. Raises StepFailed."""
    from transformers import AutoTokenizer

    quantizable.check(merged, context.scratch, [artifact.quantization])
    context.progress(f"quantizing to {artifact.quantization}")
    write = {"FP8": _write_fp8, "W4A16": _write_w4a16, "AWQ": _write_awq, "NF4": _write_nf4}[artifact.quantization]
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
    from llmcompressor.modifiers.quantization import GPTQModifier

    network = _dense(merged)
    scheme, group = _in_groups("W4A16", network)
    rows = calibration.rows(context.inputs.data()[1])
    _calibrate(network, GPTQModifier(config_groups={"group_0": scheme}, ignore=[HEAD]), rows)
    network.save_pretrained(folder, save_compressed=True)
    return {"scheme": "W4A16 by GPTQ", "groupSize": str(group), "calibrationRows": str(len(rows))}


def _write_awq(context: Context, merged: Path, folder: Path) -> dict[str, str]:
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    network = _dense(merged)
    scheme, group = _in_groups("W4A16_ASYM", network)
    rows = calibration.rows(context.inputs.data()[1], AWQ_ROWS)
    with unpinned():
        _calibrate(network, [AWQModifier(), QuantizationModifier(config_groups={"group_0": scheme}, ignore=[HEAD])], rows)
    network.save_pretrained(folder, save_compressed=True)
    return {"scheme": "W4A16_ASYM by AWQ", "groupSize": str(group), "calibrationRows": str(len(rows))}


def _in_groups(name: str, network: Any) -> tuple[Any, int]:
    """The scheme of that name with groups that fit the network, and their size."""
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme(name, ["Linear"])
    scheme.weights.group_size = group_size(network)
    return scheme, scheme.weights.group_size


def _calibrate(network: Any, recipe: Any, rows: list[list[int]]) -> None:
    """Quantize in place by what these rows, as token ids, do in the network."""
    from datasets import Dataset
    from llmcompressor import oneshot

    oneshot(
        model=network,
        dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
        recipe=recipe,
        num_calibration_samples=len(rows),
        max_seq_length=calibration.TOKENS,
    )


def unpinned() -> AbstractContextManager[None]:
    """Keeps AWQ's activations in ordinary memory where there is no accelerator.

    AWQ pins them, so that copies to a GPU are fast, without asking whether there is one (IntermediatesCache.pin_memory).
    torch can pin memory for an accelerator only, and would fail.
    """
    import torch
    from compressed_tensors.utils import patch_attr
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        return nullcontext()
    return patch_attr(IntermediatesCache, "pin_memory", lambda *_: None)  # type: ignore[no-any-return]


def _write_nf4(context: Context, merged: Path, folder: Path) -> dict[str, str]:
    import torch

    from finetune_trainer.model.compute import Compute
    from finetune_trainer.model.loading import load_base

    source, training = merged, context.run.training
    lies_on_nf4 = training.method is Method.QLORA and (training.quantization.bits, training.quantization.type) == (4, "NF4")
    if lies_on_nf4 and context.run.merge_base == "Dequantized":
        source = context.scratch / "between"
        between(merged, context.inputs.model()[1], training.quantization).save_pretrained(source)
    load_base(source, Method.QLORA, Compute("cpu", torch.bfloat16)).save_pretrained(folder)
    return {"scheme": "NF4, double quantized"}


def between(merged: Path, base: Path, quantization: Quantization) -> Any:
    """The merged model with what its base's weights lost when they were rounded to NF4 added again, in BF16.

    A model that was trained on NF4 and merged over the expanded weights lies on NF4's own values but for what training changed,
    which is less than half of the way to the next value: rounded as it is, each weight would go back to the base's, and the
    training would be undone. From where the original weight lay between two values, a change of a tenth of their distance takes
    one weight in ten to the next value, so that together the weights change by what was trained.
    """
    import torch
    from peft.utils.integrations import dequantize_bnb_weight

    from finetune_trainer.model.compute import Compute
    from finetune_trainer.model.loading import load_base

    cpu = Compute("cpu", torch.bfloat16)
    lost, rounded = load_base(base, Method.LORA, cpu), load_base(base, Method.QLORA, cpu, quantization=quantization)
    names = [name for name, parameter in rounded.named_parameters() if hasattr(parameter, "quant_state")]
    for name in names:
        weight = lost.get_parameter(name)
        weight.data = (weight.float() - dequantize_bnb_weight(rounded.get_parameter(name)).float()).to(torch.bfloat16)
    del rounded
    network = load_base(merged, Method.LORA, cpu)
    for name in names:
        weight = network.get_parameter(name)
        weight.data = (weight.float() + lost.get_parameter(name).float()).to(torch.bfloat16)
    return network


def _dense(merged: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(merged, dtype="auto", use_safetensors=True)


def prove(context: Context, artifact: Artifact, merged: Path, folder: Path) -> tuple[Check, ...]:
    """Read back, the folder must read text, carry the template and answer as the merged model, within its type's rounding."""
    from transformers import AutoTokenizer

    context.progress("verifying")
    rows = proof.fixed_rows(context.inputs.data()[1])
    tokenizer: Any = AutoTokenizer.from_pretrained(merged)
    own: Any = AutoTokenizer.from_pretrained(folder)
    checks = proof.check_tokens(rows, tokenizer, "its tokenizer", lambda text: own(text, add_special_tokens=False).input_ids)
    checks += proof.check_template(tokenizer, own.chat_template)
    found = proof.likeness(rows, _logits(merged, rows), _logits(folder, rows))
    what = f"the artifact {artifact.name} answers unlike the merged model"
    return checks + proof.check_likeness(what, found, LIMITS[artifact.quantization])


def _logits(folder: Path, rows: list[FixedRow]) -> list[Any]:
    """The rows' logits, computed on the CPU, where compressed weights are expanded; one model at a time, as two may not fit."""
    import torch

    from finetune_trainer.model.compute import Compute
    from finetune_trainer.model.loading import load_base

    network = load_base(folder, Method.LORA, Compute("cpu", torch.float32))
    return [proof.logits(network, row) for row in rows]
