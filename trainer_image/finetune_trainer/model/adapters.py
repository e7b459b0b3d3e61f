"""Adapters over a loaded model, by PEFT."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.contract import places
from finetune_trainer.contract.training import Training
from finetune_trainer.failures import bad_config, first_line
from finetune_trainer.model import saved_modules

# In PEFT's words. A whole decomposition takes far longer for large weights; 16 iterations come within 1 % of its values even on
# random weights, all of whose directions are alike.
INITS = {"Gaussian": "gaussian", "PiSSA": "pissa_niter_16", "OLoRA": "olora"}


SETTINGS = "adapter_config.json"
ROUTERS = {"gate", "router", "shared_expert_gate"}  # parts of a path: what sends tokens to experts


def add_adapters(model: Any, training: Training, idle: Collection[str] = ()) -> Any:
    """PEFT model with fresh adapters; the seed decides their weights. `idle` names modules that text never reaches.

    Raises StepFailed InvalidSpec when a name of `training.lora` is no module of this model.
    """
    from peft import LoraConfig, get_peft_model

    lora = training.lora
    saved = saved_modules.paths(model, lora)
    everything = lora.targets == ["all-linear"]
    targets: str | list[str] = "all-linear" if everything else _named(model, lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rank_stabilized,
        use_dora=lora.dora,
        init_lora_weights=INITS.get(lora.init, True),
        target_modules=targets,
        exclude_modules=_left_out(model, idle, everything=everything) or None,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2 keeps weights so
        modules_to_save=saved or None,
        ensure_weight_tying=saved_modules.are_tied(model, saved),
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(training.seed)
    try:
        if everything:
            _leave_routers(config, model)
        with warnings.catch_warnings():  # of ranks for experts' parameters, which PEFT looks for among modules
            warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise bad_config(f"training.lora can't be had for this model: {first_line(error)}") from error
    if lora.init == "Orthogonal":
        _begin_orthogonal(adapted)
    if lora.dora:
        _keep_type(adapted)
    saved_modules.answer_in_compute_type(adapted)
    return adapted


def name_base(folder: Path, uri: str, revision: str) -> None:
    """Let a saved adapter name its base as PEFT fetches it: a repository of the hub and its commit, in place of a path of this
    pod. What PEFT can't fetch is named by its uri, for people.
    """
    settings = json.loads((folder / SETTINGS).read_bytes())
    at_hub = places.of(uri) is places.HF
    settings["base_model_name_or_path"] = uri.removeprefix(places.HF.prefix).partition("@")[0] if at_hub else uri
    settings["revision"] = revision if at_hub else None
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True))


def _named(model: Any, targets: list[str]) -> list[str]:
    """The same names. Raises StepFailed BadConfig where the model has no such module for one, which PEFT would pass over."""
    paths = [f".{path}" for path, _ in model.named_modules()] + [f".{path}" for path, _ in model.named_parameters()]
    missing = [name for name in targets if not any(path.endswith(f".{name}") for path in paths)]
    if missing and not _are_experts(model, missing):
        known = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if _is_linear(m)})
        message = f"training.lora.targets: {', '.join(missing)} not in this model; its linear modules: {known}"
        raise bad_config(message)
    return targets


def _are_experts(model: Any, names: list[str]) -> bool:
    """Whether these are names that an expert's weights had when each was a module of its own, which PEFT still takes."""
    from peft.utils import transformers_weight_conversion as conversion

    family = conversion._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type, "")
    return set(names) <= set(conversion._MOE_TARGET_MODULE_MAPPING.get(family, {}))


def _is_linear(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D  # GPT-2's

    return isinstance(module, torch.nn.Linear | Conv1D)


def _leave_routers(config: Any, model: Any) -> None:
    """Take from "all-linear", where PEFT turns it into experts' parameters, those of the routers before them."""
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    convert_peft_config_for_transformers(config, model, None)
    config.target_parameters = {name for name in config.target_parameters or () if not ROUTERS & set(name.split("."))} or None


def _left_out(model: Any, idle: Collection[str], *, everything: bool) -> list[str]:
    """Paths of linear modules that get no adapter: of those that text never reaches, and unless they are named, of routers and
    of what a state space answers with, whose kernels read the weight past an adapter.
    """
    found = []
    for path, module in model.named_modules():
        if not _is_linear(module):
            continue
        holder, _, name = path.rpartition(".")
        of_state_space = name == "out_proj" and hasattr(model.get_submodule(holder), "A_log")
        if path in idle or (everything and (of_state_space or ROUTERS & set(path.split(".")))):
            found.append(path)
    return found


def _begin_orthogonal(adapted: Any) -> None:
    """A and B of random values over alternate rows of one orthogonal matrix: B A is zero, and neither of them is.

    PEFT's own `orthogonal`, with its scale, makes adapters of the base's number type, which can't be trained over 4- or
    8-bit weights.
    """
    from peft.tuners.lora import LoraLayer

    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            rank = len(a)
            rows, _ = torch.linalg.qr(torch.randn(rank, rank))
            a.data.copy_(torch.randn(a.shape[1], rank // 2).mm(rows[0::2]).t() / 10)
            b.data.copy_(torch.randn(len(b), rank // 2).mm(rows[1::2]) / 10)


def _keep_type(adapted: Any) -> None:
    """Let DoRA's 4-bit layers answer in the type they are asked in. PEFT's answer in that of DoRA's lengths, float32, and so
    would every layer behind them: twice the memory, and nothing that flash attention takes.
    """
    from peft.tuners.lora import LoraLayer

    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.register_forward_hook(lambda _, asked, answer: answer.to(asked[0].dtype))
