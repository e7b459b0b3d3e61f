"""GGUF files by llama.cpp's own programs, which are found below $LLAMA_CPP_DIR, with a Modelfile for Ollama."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune_trainer.context import Context
from finetune_trainer.contract.artifacts import Artifact
from finetune_trainer.contract.pod import ENV_LLAMA_CPP
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Check
from finetune_trainer.contract.training import Method
from finetune_trainer.export import calibration, llamacpp, proof
from finetune_trainer.export.proof import Limits
from finetune_trainer.failures import StepFailed
from finetune_trainer.libraries import threads

CONVERTER, QUANTIZER, WEIGHER = "convert_hf_to_gguf.py", "bin/llama-quantize", "bin/llama-imatrix"
CONTEXTS = (512, 256, 128, 64, 32, 16)  # tokens that are looked at together; it takes text for at least two of these
FALLBACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback quantization")

# SmolLM2-135M, as hard to round as models get (most of its rows are no multiple of 256), has divergences of 4e-6, 0.006,
# 0.026, 0.14 and 0.10 and ratios up to 1.18; large models have a tenth of it. A broken file is far beyond all of these.
LIMITS = {
    "F16": Limits(0.01, 0.95, 1.05),
    "Q8_0": Limits(0.05, 0.9, 1.1),
    "Q6_K": Limits(0.15, 0.8, 1.3),
    "Q5_K_M": Limits(0.6, 0.7, 1.8),
    "Q4_K_M": Limits(0.6, 0.7, 1.8),
}


def make(context: Context, artifact: Artifact, merged: Path, folder: Path) -> dict[str, str]:
    """Write <artifact>.gguf and, where it can be said, Modelfile; returns what the manifest should note.

    K-quants need rows of a multiple of 256 values; llama.cpp takes another type for tensors that have none, and the
    manifest says for how many.
    """
    tools = llamacpp.folder()
    _check(tools / CONVERTER, tools / QUANTIZER, *([tools / WEIGHER] if artifact.imatrix else []))
    file = folder / f"{artifact.name}.gguf"
    notes: dict[str, str] = {}
    context.progress("converting to GGUF")
    if artifact.quantization == "F16":
        _convert(tools, merged, file, "f16")
    else:
        whole = context.scratch / "whole.gguf"
        _convert(tools, merged, whole, "bf16")  # the merged weights as they are
        weighed = _weigh(context, tools, merged, whole, notes) if artifact.imatrix else []
        context.progress(f"quantizing to {artifact.quantization}")
        log = _tool(str(tools / QUANTIZER), *weighed, str(whole), str(file), artifact.quantization, str(threads()))
        whole.unlink()
        fallback = FALLBACK.search(log)
        if fallback is not None:
            notes["fallbackTensors"] = f"{fallback[1]} of {fallback[2]}"
    if (text := _modelfile(file.name, merged)) is not None:
        (folder / "Modelfile").write_text(text)
    return notes


def _weigh(context: Context, tools: Path, merged: Path, whole: Path, notes: dict[str, str]) -> list[str]:
    """The quantizer's option for the importance matrix, once it is made: how strongly training rows drive each weight."""
    from transformers import AutoTokenizer

    context.progress("weighing by training rows")
    tokenizer: Any = AutoTokenizer.from_pretrained(merged)
    rows = calibration.rows(context.inputs.data()[1])
    tokens = sum(map(len, rows))
    text, matrix = context.scratch / "rows.txt", context.scratch / "imatrix.gguf"
    text.write_text("\n".join(tokenizer.decode(row) for row in rows))
    size = next((n for n in CONTEXTS if 2 * n < tokens), CONTEXTS[-1])
    options = ["--no-ppl", "--parse-special", "--ctx-size", str(size), "--threads", str(threads())]
    _tool(str(tools / WEIGHER), "--model", str(whole), "--file", str(text), "--output", str(matrix), *options)
    notes |= {"imatrixRows": str(len(rows)), "imatrixTokens": str(tokens)}
    return ["--imatrix", str(matrix)]


def prove(context: Context, artifact: Artifact, merged: Path, folder: Path) -> tuple[Check, ...]:
    """The file must read text, carry the template and answer as the merged model does, within its type's rounding."""
    import torch
    from transformers import AutoTokenizer

    from finetune_trainer.model.compute import Compute
    from finetune_trainer.model.loading import end_tokens, load_base

    context.progress("verifying")
    rows = proof.fixed_rows(context.inputs.data()[1])
    tokenizer: Any = AutoTokenizer.from_pretrained(merged)
    network = load_base(merged, Method.LORA, Compute("cpu", torch.float32))
    expected = [proof.logits(network, row) for row in rows]
    del network  # before the file is read: both at once would need half as much memory again
    llama = llamacpp.open_model(folder / f"{artifact.name}.gguf", max(len(row.tokens) for row in rows))
    checks = proof.check_tokens(
        rows, tokenizer, "llama.cpp's tokenizer", lambda text: llama.tokenize(text.encode(), add_bos=False, special=True)
    )
    checks += proof.check_template(tokenizer, llama.metadata.get("tokenizer.chat_template"))
    checks += proof.check_end_token(end_tokens(tokenizer, merged), llama.metadata.get("tokenizer.ggml.eos_token_id"))
    found = [torch.from_numpy(llamacpp.logits(llama, row.tokens)) for row in rows]
    likeness = proof.likeness(rows, expected, found)
    what = f"the GGUF file {artifact.name} answers unlike the merged model"
    return checks + proof.check_likeness(what, likeness, LIMITS[artifact.quantization])


def _check(*tools: Path) -> None:
    missing = [tool.name for tool in tools if not tool.is_file()]
    if missing:
        message = f"{' and '.join(missing)} not found: set {ENV_LLAMA_CPP} to llama.cpp's folder"
        raise StepFailed(StepReason.ToolMissing, message)


def _convert(tools: Path, merged: Path, file: Path, kind: str) -> None:
    _tool(sys.executable, str(tools / CONVERTER), str(merged), "--outfile", str(file), "--outtype", kind)


def _tool(*command: str) -> str:
    """Run one of llama.cpp's programs; returns what it printed."""
    name = Path(command[1] if command[0] == sys.executable else command[0]).name
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise StepFailed(StepReason.ConversionFailed, f"{name} refused this model: {last[:300]}")
    return done.stdout + done.stderr


def _modelfile(gguf: str, merged: Path) -> str | None:
    from transformers import AutoTokenizer

    from finetune_trainer.export.modelfile import write_modelfile
    from finetune_trainer.model.loading import end_tokens

    tokenizer: Any = AutoTokenizer.from_pretrained(merged)
    stops = [tokenizer.decode([token]) for token in end_tokens(tokenizer, merged)]
    return write_modelfile(gguf, tokenizer, stops)
