"""A model's folder read without torch: which files belong to it, what it is, and how many parameters it has."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import File, ModelFacts
from finetune_trainer.failures import StepFailed
from finetune_trainer.store.files import folder_digest

WEIGHTS, INDEX = ".safetensors", "model.safetensors.index.json"
PICKLES, PICKLES_INDEX = ".bin", "pytorch_model.bin.index.json"
# Only these are taken from a source: no code, and pickles only where they are asked for.
WANTED = (
    "model*.safetensors",
    INDEX,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
)
WANTED_PICKLED = (*WANTED, "pytorch_model*.bin", PICKLES_INDEX)
MAX_HEADER = 100 << 20  # bytes; what the safetensors library itself allows


def check_names(names: Sequence[str], *, pickled: bool = False) -> None:
    """Whether these files make a model that can be trained. Raises StepFailed that says what is missing."""
    if "config.json" not in names:
        found = ", ".join(names[:10]) or "nothing that belongs to a model"
        raise unsupported(StepReason.ModelUnsupported, f"it has no config.json (found: {found})")
    safe = any(name.endswith(WEIGHTS) for name in names)
    if pickled and safe:
        raise unsupported(
            StepReason.PicklesNotNeeded, "it has model*.safetensors as well: remove weights: Pickle, and those are taken"
        )
    if pickled and not any(name.endswith(PICKLES) for name in names):
        raise unsupported(StepReason.ModelUnsupported, "it has no pytorch_model*.bin, which weights: Pickle asks for")
    if not pickled and not safe:
        raise unsupported(
            StepReason.ModelWithoutSafetensors,
            "it has no model*.safetensors: convert its weights to safetensors, or set weights: Pickle if they are"
            " pytorch_model*.bin",
        )
    if "tokenizer.json" not in names:
        text = "it has no tokenizer.json; save its tokenizer once with a current transformers to get one"
        raise unsupported(StepReason.TokenizerUnsupported, text)


def facts(folder: Path, files: Iterable[File], revision: str) -> ModelFacts:
    """What the model is. Raises StepFailed where it isn't one that can be trained."""
    listed = tuple(files)
    names = {file.path for file in listed}
    weights = [folder / name for name in sorted(names) if name.endswith(WEIGHTS)]
    check_index(folder / INDEX, names)
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except ValueError as error:
        raise unsupported(StepReason.ModelUnsupported, f"its config.json is not JSON: {error}") from error
    if "quantization_config" in config:
        raise unsupported(StepReason.ModelUnsupported, "it is quantized already: name the repository with its full weights")
    return ModelFacts(
        revision=revision,
        digest=folder_digest(file for file in listed if not file.path.startswith("LICENSE")),
        parameters=sum(parameters(header(path)) for path in weights),
        architecture=next(iter(config.get("architectures") or [config.get("model_type", "unknown")])),
        bytes=sum(file.bytes for file in listed),
    )


def header(path: Path) -> Mapping[str, Any]:
    """The header of a safetensors file: name → {dtype, shape, data_offsets}. Raises StepFailed ModelDamaged."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER:
                raise ValueError("its header is too long")
            found: dict[str, Any] = json.loads(stream.read(length))
        found.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in found.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise unsupported(StepReason.ModelDamaged, f"{path.name} is no safetensors file: {error}") from error
    if 8 + length + end != path.stat().st_size:
        raise unsupported(
            StepReason.ModelDamaged, f"{path.name} is cut short: {path.stat().st_size} of {8 + length + end} bytes"
        )
    return found


def parameters(tensors: Mapping[str, Any]) -> int:
    """Numbers in all tensors of a header."""
    return sum(math.prod(tensor["shape"]) for tensor in tensors.values())


def check_index(file: Path, names: Collection[str]) -> None:
    """Raises StepFailed where an index, if there is one, names files that are not there."""
    if file.name not in names:
        return
    index = json.loads(file.read_bytes())
    missing = sorted(set(index.get("weight_map", {}).values()) - set(names))
    if missing:
        raise unsupported(StepReason.ModelDamaged, f"its index names {', '.join(missing[:5])}, which is not there")


def unsupported(reason: StepReason, why: str) -> StepFailed:
    """What is wrong with the model's files, in one sentence."""
    return StepFailed(reason, f"spec.model: {why}")
