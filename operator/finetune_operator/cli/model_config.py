"""A base model's config.json and its number of parameters, without its weights: what the memory estimate needs of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_operator.cli.document import FileError
from finetune_trainer.contract.fields import Model
from finetune_trainer.contract.places import HF, PVC, claim_of
from finetune_trainer.memory.shape import Shape, parameters_of, shape_of


def shape(model: Model, claims: Mapping[str, Path], given: Path | None = None, parameters: int | None = None) -> Shape:
    """The shape of a model of the file. `given` is a config.json or a folder with one; else a hub or a claim's folder has it.

    Where nobody says how many parameters it has, the hub's count is taken, else what config.json comes to. Raises FileError.
    """
    counted = None
    if given is not None:
        config = _read(given / "config.json" if given.is_dir() else given)
    elif model.uri.startswith(HF.prefix):
        config, counted = _at_hub(model.uri)
    elif (claim := claim_of(model.uri)) in claims:
        folder = claims[claim or ""] / model.uri.removeprefix(f"{PVC.prefix}{claim}").lstrip("/")
        config = _read(folder / "config.json")
    else:
        raise FileError(f"the model {model.uri} can't be looked at from here; add --config FILE, its config.json")
    try:
        return shape_of(config, parameters or counted or parameters_of(config))
    except KeyError as error:
        raise FileError(f"{model.uri} is no decoder-only transformer: its config.json lacks {error.args[0]}") from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path} can't be read: {error.strerror}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FileError(f"{path} is no config.json of a model")
    return found


def _at_hub(uri: str) -> tuple[Mapping[str, Any], int | None]:
    """config.json and, where the weights are safetensors, the count that their headers give. HF_ENDPOINT and HF_TOKEN hold."""
    try:
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError
    except ImportError:
        raise FileError("huggingface_hub is not installed here; add --config FILE, the model's config.json") from None
    repository, _, revision = uri.removeprefix(HF.prefix).partition("@")
    try:
        config = _read(Path(hf_hub_download(repository, "config.json", revision=revision or None)))
        counts = HfApi().get_safetensors_metadata(repository, revision=revision or None).parameter_count
    except (NotASafetensorsRepoError, SafetensorsParsingError):
        return config, None
    except (HfHubHTTPError, ValueError, OSError) as error:
        text = " ".join(str(error).split())[:200]
        raise FileError(f"the hub did not give {uri}: {text}; add --config FILE, its config.json") from None
    return config, sum(counts.values())
