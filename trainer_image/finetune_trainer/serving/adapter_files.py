"""The files of one adapter: fetched, checked against their digest, and held against the base model, all before it is loaded."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer import environment
from finetune_trainer.contract import pipeline, places
from finetune_trainer.contract.fields import Model
from finetune_trainer.contract.places import mounted_path
from finetune_trainer.contract.pod import Owner
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Manifest
from finetune_trainer.contract.served_adapters import misfit
from finetune_trainer.failures import StepFailed
from finetune_trainer.model import weights
from finetune_trainer.serving.load import check_files, fetch
from finetune_trainer.store.bucket import BucketObjects
from finetune_trainer.store.files import FILES, MANIFEST, folder_digest, parse_files

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"  # names of PEFT's tensors


@dataclass(frozen=True)
class Place:
    """Where adapters are fetched from, when that is a bucket."""

    endpoint: str | None = None
    region: str | None = None


@dataclass(frozen=True)
class Base:
    """The served model that adapters are laid over, and the highest rank that its engine has room for."""

    folder: Path
    max_rank: int

    def shapes(self) -> Mapping[str, list[int]]:
        """Shapes of its tensors; none where they can't be told, as of quantized ones."""
        names = {path.name for path in self.folder.glob("model*.safetensors*")}
        if not names & {weights.WHOLE, weights.INDEX} or weights.settings(self.folder / "config.json").get(
            "quantization_config"
        ):
            return {}
        files = weights.read_of(names, self.folder)
        return {name: t["shape"] for file in files for name, t in weights.header(self.folder / file).items()}

    def digest(self) -> str | None:
        """What a FineTuneJob calls it that trains over it; None where its files have no digests."""
        listed = self.folder / FILES
        if not listed.is_file():
            return None
        files = [f for f in parse_files(listed.read_bytes()) if any(fnmatch.fnmatchcase(f.path, w) for w in weights.WANTED)]
        return folder_digest(f for f in files if not f.path.startswith("LICENSE"))


def fetch_adapter(uri: str, digest: str, into: Path, place: Place) -> Path:
    """A copy of the adapter in `into`, which is there only once every byte was checked. Raises StepFailed."""
    if into.is_dir():
        return into
    making = into.with_name(f"{into.name}.part")
    try:
        mounted = mounted_path(uri, environment.read().mounts)
        if mounted is None:
            fetch(uri, making, digest, place.endpoint, place.region)
        else:
            _copy(uri, Path(mounted), making)
        check_files(making, uri, digest)
    except StepFailed as error:
        raise StepFailed(error.reason, error.message.replace("spec.model.", "its ")) from error
    making.rename(into)
    return into


def _copy(uri: str, folder: Path, into: Path) -> None:
    if not folder.is_dir():
        raise StepFailed(StepReason.AdapterNotFound, f"there is no folder {uri}; correct its uri")
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(folder, into)


def check_adapter(folder: Path, uri: str, base: Base, place: Place) -> None:
    """Whether the engine can lay it over the base model. Raises StepFailed AdapterUnsupported or AdapterOfAnotherBase."""
    if not (folder / SETTINGS).is_file() or not (folder / WEIGHTS).is_file():
        raise StepFailed(StepReason.AdapterUnsupported, f"{uri} is no adapter of PEFT: it has no {SETTINGS} or no {WEIGHTS}")
    settings = _settings(folder, uri)
    highest = max([int(settings.get("r") or 0), *map(int, (settings.get("rank_pattern") or {}).values())])
    whole = settings.get("modules_to_save") or ()
    wrong = misfit(highest, base.max_rank, dora=bool(settings.get("use_dora")), whole=whole)
    if wrong is None and settings.get("bias", "none") != "none":
        wrong = "it has biases, which vLLM does not take; serve the merged model"
    if wrong is None and settings.get("target_parameters"):
        wrong = "it changes experts' weights, each layer's in one tensor, which vLLM does not take so; serve the merged model"
    own, served = _template(folder), _template(base.folder)
    if wrong is None and own is not None and own != served:
        wrong = "it was trained with another chat template than the base model's, which questions would be put in here"
        wrong += "; serve the merged model, or the base model with that template"
    if wrong is not None:
        raise StepFailed(StepReason.AdapterUnsupported, f"the adapter {uri}: {wrong}")
    _check_base(uri, settings, base, place)
    _check_modules(folder, uri, base.shapes())


def _template(folder: Path) -> str | None:
    """The chat template that lies in a folder; None where there is none."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    found = weights.settings(settings).get("chat_template") if settings.is_file() else None
    return found.strip() if isinstance(found, str) else None


def _settings(folder: Path, uri: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if found["peft_type"] == "LORA":
            return found
        what = f"its {SETTINGS} says {found['peft_type']}, and LORA alone is served"
    except (ValueError, KeyError, TypeError):
        what = f"its {SETTINGS} can't be read"
    raise StepFailed(StepReason.AdapterUnsupported, f"the adapter {uri}: {what}")


def _check_modules(folder: Path, uri: str, shapes: Mapping[str, list[int]]) -> None:
    """Each module that the adapter changes must be one of the base model's, and of its size."""
    for name, tensor in weights.header(folder / WEIGHTS).items() if shapes else ():
        part = next((p for p in (A, B) if name.endswith(p)), None)
        if part is None:
            continue
        module = f"{name.removeprefix(PREFIX).removesuffix(part)}.weight"
        if module not in shapes:
            text = f"it changes {module.removesuffix('.weight')}, which the base model has not"
            raise StepFailed(StepReason.AdapterOfAnotherBase, f"the adapter {uri}: {text}")
        wants, has = (tensor["shape"][1], shapes[module][1]) if part == A else (tensor["shape"][0], shapes[module][0])
        if wants != has:
            text = f"it was trained over a {module.removesuffix('.weight')} of {wants} numbers, and the base model's has {has}"
            raise StepFailed(StepReason.AdapterOfAnotherBase, f"the adapter {uri}: {text}")


# ── The base that it was trained over ─────────────────────────────────────────────────────────────────────────────────


def _check_base(uri: str, settings: Mapping[str, Any], base: Base, place: Place) -> None:
    """An adapter of an artifact store tells what it was trained over; of another nobody knows more than its shapes."""
    trained, served = _trained_over(uri, settings, place), base.digest()
    if trained is not None and served is not None and trained != served:
        text = (
            f"it was trained over {settings['base_model_name_or_path']} ({trained[:19]}…), and the base here is {served[:19]}…"
        )
        raise StepFailed(StepReason.AdapterOfAnotherBase, f"the adapter {uri}: {text}")


def _trained_over(uri: str, settings: Mapping[str, Any], place: Place) -> str | None:
    """Digest of the base model, as the store's entry of that model has it."""
    named = str(settings.get("base_model_name_or_path") or "")
    path = uri.rstrip("/").rsplit("/", 3)  # <store>/train/<fingerprint>/<attempt>
    if len(path) < 4 or path[1] != pipeline.TRAIN or not named:
        return None
    revision = settings.get("revision")
    bases = [named] if "://" in named else [f"{places.HF.prefix}{named}", f"{places.HF.prefix}{named}@{revision}"]
    for one in bases:
        content = _read(path[0], f"model/{pipeline.model_fingerprint(Model(uri=one))}/{MANIFEST}", place)
        model = None if content is None else Manifest.model_validate_json(content).result.model
        if model is not None:
            return model.digest
    return None


def _read(root: str, path: str, place: Place) -> bytes | None:
    mounted = mounted_path(root, environment.read().mounts)
    if mounted is not None:
        file = Path(mounted) / path
        return file.read_bytes() if file.is_file() else None
    access = environment.access(Owner.MODEL, places.of(root))
    return BucketObjects(root, access, place.endpoint, place.region).read(path)
