"""What lies at a model's uri where no whole model does, and what to name in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fnmatch import fnmatch

from finetune_trainer.contract.places import HF
from finetune_trainer.sources.source import CARD, Listing

ADAPTER = "adapter_config.json"
WHOLE_MODELS = ("model*.safetensors", "pytorch_model*.bin")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
OF_CARD = re.compile(r"^base_model:[ \t]*(?:\n[ \t]*-[ \t]*)?[\"']?([^\s\"'#]+)", re.MULTILINE)
# Files of weights that transformers does not read, and whose they are.
OTHERS = {
    "*.gguf": "llama.cpp",
    "*.onnx": "ONNX",
    "consolidated*": "the model's own authors",
    "*.h5": "TensorFlow",
    "*.msgpack": "Flax",
    "*.npz": "MLX",
    "*.ckpt": "another program",
    "*.pt": "another program",
    "*.pth": "another program",
}


def what_instead(listing: Listing) -> str | None:
    """A sentence for an adapter, for files of another program and for a model in a folder below; None for all else."""
    names = [path for path in listing.paths if "/" not in path]
    has_config = "config.json" in names
    has_weights = any(fnmatch(name, pattern) for name in names for pattern in WHOLE_MODELS)
    if has_config and has_weights:
        return None
    if ADAPTER in names:
        return _of_adapter(listing)
    others = ((name, whose) for pattern, whose in OTHERS.items() for name in names if fnmatch(name, pattern))
    if not has_weights and (found := next(others, None)) is not None:
        return _of_another_program(listing, *found)
    folder = next((path.rpartition("/")[0] for path in sorted(listing.paths) if path.endswith("/config.json")), None)
    if has_config or folder is None:
        return None
    return (
        f"it has no config.json itself, but its folder {folder} has: name that folder, or lay its files where its own would be"
    )


def _of_adapter(listing: Listing) -> str:
    base = _tried(lambda: _base_of_adapter(listing.read(ADAPTER)))
    over = f"trained over {base}: name {_as_uri(base) or 'that model'}" if base else "without its base model: name that"
    return f"it is an adapter alone ({ADAPTER}), {over} in its place, or merge the two and name what comes of that"


def _of_another_program(listing: Listing, name: str, whose: str) -> str:
    base = _tried(lambda: _base_of_card(listing.read(CARD))) if CARD in listing.paths else None
    uri = _as_uri(base) if base else None
    full = f"{uri}, its base by its {CARD}," if uri else "the repository of the full model"
    return f"its weights are files of {whose} ({name}), which can't be trained: name {full} in its place"


def _tried(read: Callable[[], str | None]) -> str | None:
    """What may be told of another file; None where that can't be read."""
    try:
        return read()
    except Exception:  # of hubs and buckets as of files: the sentence is as true without it
        return None


def _base_of_adapter(text: str) -> str | None:
    config = json.loads(text)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base:
        return None
    return f"{base}@{revision}" if isinstance(revision, str) and revision not in ("", "main") else base


def _base_of_card(text: str) -> str | None:
    """The first base_model of the card's front matter."""
    found = OF_CARD.search(text.split("---", 2)[1]) if text.startswith("---") else None
    return found[1] if found else None


def _as_uri(base: str) -> str | None:
    """A repository's name as spec.model.uri has it; None for a path on its author's machine."""
    return f"{HF.prefix}{base}" if REPOSITORY.fullmatch(base.partition("@")[0]) else None
