"""Weights in pickles, where they are asked for by name: read as plain tensors, and written as safetensors.

    pytorch_model-00001-of-00002.bin ─► model-00001-of-00002.safetensors     one file after the other
    pytorch_model-00002-of-00002.bin ─► model-00002-of-00002.safetensors, model.safetensors.index.json

A pickle can be any program. torch's reader of weights runs none: it knows tensors and containers of them, and no other name.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed, first_line
from finetune_trainer.model.weights import INDEX, PICKLES, PICKLES_INDEX, check_index, unsupported

WHOLE = "pytorch_model.bin"
HEADS = ("lm_head.weight", "embed_out.weight")  # what repeats the embedding where a model ties them
ASKED_FOR = re.compile(r"GLOBAL (\S+)|Unsupported class (\S+)")  # in torch's message: the name that is no tensor's


def convert(folder: Path, names: Collection[str], into: Path) -> Iterator[str]:
    """Write the weights of `folder` to `into`; yields each pickle that is no longer needed. One at a time is held in memory.

    Raises StepFailed PickleRefused for a file that needs more than plain tensors, ModelDamaged for one that can't be read.
    """
    from safetensors.torch import save_file

    shards = _shards(folder, names)
    tied = _ties_embeddings(folder)
    index: dict[str, str] = {}
    for shard in shards:
        written = shard.removeprefix("pytorch_").removesuffix(PICKLES) + ".safetensors"
        tensors = _apart(_read(folder / shard), tied)
        save_file(tensors, into / written, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, written)
        yield shard
    if len(shards) > 1:
        (into / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=1, sort_keys=True))


def _shards(folder: Path, listed: Collection[str]) -> list[str]:
    """The files that make the model: those that its index names, or the one that is whole; beside them may lie variants."""
    if PICKLES_INDEX in listed:
        check_index(folder / PICKLES_INDEX, listed)
        return sorted(set(json.loads((folder / PICKLES_INDEX).read_bytes())["weight_map"].values()))
    return [WHOLE] if WHOLE in listed else sorted(name for name in listed if name.endswith(PICKLES))


def _read(file: Path) -> dict[str, Any]:
    """The tensors of one pickle by name, as far as possible left on disk until they are used."""
    import torch

    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        asked = ASKED_FOR.search(str(error))
        what = f"asks for {next(filter(None, asked.groups()))}" if asked else "holds something else than tensors"
        raise _refused(f"{file.name} {what}, and nothing in a pickle is run") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise unsupported(StepReason.ModelDamaged, f"{file.name} can't be read: {first_line(error)}") from error
    if not isinstance(found, Mapping):
        raise _refused(f"{file.name} holds a {type(found).__name__} instead of tensors by name")
    other = next((name for name, value in found.items() if not isinstance(value, torch.Tensor)), None)
    if other is not None:
        raise _refused(f"{file.name} holds {other}, a {type(found[other]).__name__}, beside its tensors")
    return {str(name): tensor for name, tensor in found.items()}


def _apart(tensors: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """Tensors that share no memory, as safetensors wants them: tied heads are left out, all others get a copy of their own."""
    apart: dict[str, Any] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        if tied and place in taken and name.endswith(HEADS):
            continue
        apart[name] = tensor.clone() if place in taken else tensor.contiguous()
        taken.add(place)
    return apart


def _ties_embeddings(folder: Path) -> bool:
    """Whether the model's output head is its embedding: then the file need not hold it twice."""
    from finetune_trainer.model.outline import configuration

    try:
        return bool(configuration(folder).get_text_config().tie_word_embeddings)
    except (ValueError, KeyError, OSError):  # an architecture that transformers doesn't know: copies are never wrong
        return False


def _refused(why: str) -> StepFailed:
    return unsupported(
        StepReason.PickleRefused, f"{why}: take weights that are plain tensors, or convert them to safetensors yourself"
    )
