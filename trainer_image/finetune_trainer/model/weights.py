"""A model's folder read without torch: which files belong to it, what it is, and how many parameters it has."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import File, ModelFacts
from finetune_trainer.failures import StepFailed
from finetune_trainer.model.no_model import ADAPTER, what_instead
from finetune_trainer.sources.source import Listing
from finetune_trainer.store.files import folder_digest

WEIGHTS, WHOLE, INDEX = ".safetensors", "model.safetensors", "model.safetensors.index.json"
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
QUANTIZED = ("quantization_config", "compression_config", "quantization")  # MLX's is the last
MAX_HEADER = 100 << 20  # bytes; what the safetensors library itself allows


def check_names(listing: Listing, *, pickled: bool = False, mounted: bool = False) -> None:
    """Whether these files make a model that can be trained. Raises StepFailed that says what is missing.

    Of a `mounted` model no file is left out when it is read.
    """
    names = listing.wanted
    if (instead := what_instead(listing)) is not None:
        raise unsupported(StepReason.ModelUnsupported, instead)
    if mounted and ADAPTER in listing.paths:
        text = f"it has an adapter ({ADAPTER}) beside its weights, which would be added to them: lay that into another folder"
        raise unsupported(StepReason.ModelUnsupported, text)
    if "config.json" not in names:
        found = ", ".join(sorted(listing.paths)[:10]) or "nothing"
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
    if safe and not {WHOLE, INDEX} & {*names}:
        raise unsupported(
            StepReason.ModelDamaged,
            f"it has neither {WHOLE} nor {INDEX}, which says what lies in which of its files: upload that, too, or save the"
            " model again with save_pretrained",
        )
    if "tokenizer.json" not in names:
        text = "it has no tokenizer.json; save its tokenizer once with a current transformers to get one"
        raise unsupported(StepReason.TokenizerUnsupported, text)


def facts(folder: Path, files: Iterable[File], revision: str) -> ModelFacts:
    """What the model is. Raises StepFailed where it isn't one that can be trained."""
    listed = tuple(files)
    names = {file.path for file in listed}
    check_index(folder / INDEX, names)
    config = settings(folder / "config.json")
    _check_generation(folder / "generation_config.json")
    if any(config.get(name) for name in QUANTIZED):
        raise unsupported(StepReason.ModelUnsupported, "it is quantized already: name the repository with its full weights")
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return ModelFacts(
        revision=revision,
        digest=folder_digest(file for file in listed if not file.path.startswith("LICENSE")),
        parameters=sum(parameters(header(folder / name)) for name in read_of(names, folder)),
        architecture=str(first or config.get("model_type", "unknown")),
        bytes=sum(file.bytes for file in listed),
    )


def settings(file: Path) -> dict[str, Any]:
    """What a file of settings holds. Raises StepFailed ModelUnsupported where it is no object of names and values."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise unsupported(StepReason.ModelUnsupported, f"its {file.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise unsupported(StepReason.ModelUnsupported, f"its {file.name} is no object of names and values: upload it again")
    return found


def read_of(names: Collection[str], folder: Path) -> list[str]:
    """The files of weights that transformers reads: the whole model, else those that the index in `folder` names."""
    if WHOLE in names:
        return [WHOLE]
    return sorted(set(settings(folder / INDEX)["weight_map"].values()))


def _check_generation(file: Path) -> None:
    """End tokens are needed after training, too. Raises StepFailed ModelUnsupported where they are no numbers."""
    found = settings(file) if file.is_file() else {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        named = found.get(name)
        numbers = named if isinstance(named, list) else [named]
        if any(number is not None and type(number) is not int for number in numbers):
            raise unsupported(
                StepReason.ModelUnsupported,
                f"{name} in its {file.name} is neither a token's number nor a list of them: mend it",
            )


def header(path: Path) -> Mapping[str, Any]:
    """The header of a safetensors file: name → {dtype, shape, data_offsets}. Raises StepFailed ModelDamaged."""
    try:
        with path.open("rb") as stream:
            found = tensors(stream.read)
            begin = stream.tell()
        end = max((tensor["data_offsets"][1] for tensor in found.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unsupported(StepReason.ModelDamaged, f"{path.name} is no safetensors file: {error}") from error
    if begin + end != path.stat().st_size:
        raise unsupported(StepReason.ModelDamaged, f"{path.name} is cut short: {path.stat().st_size} of {begin + end} bytes")
    return found


def tensors(read: Callable[[int], bytes]) -> dict[str, Any]:
    """The same of a file's bytes, of which `read` gives the next ones. Raises struct.error, ValueError or TypeError."""
    (length,) = struct.unpack("<Q", read(8))
    if length > MAX_HEADER:
        raise ValueError("its header is too long")
    found = json.loads(read(length))
    return {name: tensor for name, tensor in found.items() if name != "__metadata__"}


def tensors_of(begin: Callable[[int], bytes]) -> dict[str, Any]:
    """The same of a file that lies elsewhere, of which `begin` gives as many of the first bytes as it is asked for."""
    (length,) = struct.unpack("<Q", begin(8))
    return tensors(io.BytesIO(begin(8 + length)).read)


def parameters(tensors: Mapping[str, Any]) -> int:
    """Numbers in all tensors of a header."""
    return sum(math.prod(tensor["shape"]) for tensor in tensors.values())


def check_index(file: Path, names: Collection[str]) -> None:
    """Raises StepFailed where an index, if there is one, names files that are not there."""
    if file.name not in names:
        return
    held = settings(file).get("weight_map")
    if not isinstance(held, dict):
        raise unsupported(StepReason.ModelDamaged, f"its {file.name} has no weight_map, which says what lies in which file")
    missing = sorted({str(name) for name in held.values()} - set(names))
    if missing:
        raise unsupported(StepReason.ModelDamaged, f"its index names {', '.join(missing[:5])}, which is not there")


def unsupported(reason: StepReason, why: str) -> StepFailed:
    """What is wrong with the model's files, in one sentence."""
    return StepFailed(reason, f"spec.model: {why}")
