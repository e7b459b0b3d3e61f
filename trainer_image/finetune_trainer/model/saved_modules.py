"""Modules that are trained whole beside the adapters (PEFT's modules_to_save), in practice embed_tokens and lm_head.

PEFT trains a copy of each and keeps the module itself, which answers again where the adapters are switched off. Copies are in
float32 whatever the compute type, lest small updates round away. Where a model ties its output layer to its embedding, the
copy is one tensor for both, so that the merged model is tied as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from finetune_trainer.contract.adapters import Lora
from finetune_trainer.failures import bad_config


def paths(model: nn.Module, lora: Lora) -> list[str]:
    """Full names of the modules that `lora.modules_to_save` names, and of those that share weights with them. (PEFT by itself
    would take norm for input_layernorm, too.)

    Raises StepFailed InvalidSpec for a name that no such module has, and for weights that get an adapter as well.
    """
    able = {path: module for path, module in model.named_modules(remove_duplicate=False) if _is_trainable(module)}
    missing = [name for name in lora.modules_to_save if not any(_named(path, [name]) for path in able)]
    if missing:
        known = sorted({_last(path) for path in able})
        raise bad_config(
            f"training.lora.modulesToSave: {', '.join(missing)} not in this model, or quantized; it can train {known} whole"
        )
    taken = {id(w) for path, module in able.items() if _named(path, lora.modules_to_save) for w in module.parameters()}
    found = [path for path, module in able.items() if any(id(w) in taken for w in module.parameters())]
    both = [_last(path) for path in found if _named(path, lora.targets)]
    if both:
        raise bad_config(
            f"training.lora.targets and modulesToSave both take the weights of {both[0]}; name it in one of the two"
        )
    return found


def are_tied(model: nn.Module, found: Sequence[str]) -> bool:
    """Whether some of these modules share their weights."""
    weights = [id(weight) for path in found for weight in model.get_submodule(path).parameters()]
    return len(set(weights)) < len(weights)


def _is_trainable(module: nn.Module) -> bool:
    """Whether it has weights of its own, nothing below it, and nothing that is quantized."""
    weights = list(module.parameters())
    return bool(weights) and not list(module.children()) and all(weight.is_floating_point() for weight in weights)


def _named(path: str, names: Sequence[str]) -> bool:
    return any(f".{path}".endswith(f".{name}") for name in names)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def copies(adapted: Any) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Each module's name in the base model, the copy that is trained, and the module itself."""
    from peft.utils.other import ModulesToSaveWrapper

    for path, module in adapted.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            yield path, module.modules_to_save["default"], module.original_module


def answer_in_compute_type(adapted: Any) -> None:
    """Let copies answer in the number type of the modules they stand for: behind an embedding in float32 every hidden state
    would be in float32, for twice the memory.
    """
    for _, copy, original in copies(adapted):
        dtype = next(original.parameters()).dtype
        copy.register_forward_hook(lambda _, __, answer, dtype=dtype: answer.to(dtype))


def begin_in_float32(adapted: Any) -> None:
    """Let copies begin as the modules themselves are, number by number: TRL has rounded those of QLoRA to BF16."""
    for _, copy, original in copies(adapted):
        for own, given in zip(copy.parameters(), original.parameters(), strict=True):
            own.data = given.data.to(torch.float32, copy=True)
