"""Whether a model's files hold the weights that its configuration asks for, told by their names, types and shapes alone.

What is missing would begin at random, and be trained, scored and served as if it were the model's own. What is there beyond
that would be passed over, and lack in all that is made of the model.
"""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed
from finetune_trainer.model.outline import outline

FLOATS = ("F64", "F32", "F16", "BF16")
MOST_LEFT = 0.05  # of all numbers in the files: more that have no place in the model are those of another one
EXPERT = re.compile(r"(?P<before>.*\.experts\.)(?P<number>\d+)(?P<after>\..+)")
# What files hold beside a language model's weights: tables that are computed, and parts that text never reaches.
HARMLESS = re.compile(
    r"(inv_freq|position_ids|masked_bias|attn\.bias|num_batches_tracked)$"
    r"|(^|\.)(vision|visual|vit|image|img|multi_modal|multimodal|mm|audio|speech|sound|embed_vision|embed_audio)(_\w+)?\."
)


def check_complete(folder: Path, held: Mapping[str, Any], field: str) -> str | None:
    """A sentence about weights that have no place in the model, where there are some. Raises StepFailed ModelDamaged.

    `folder` holds the model's config.json, `held` is all that its weights' headers say.
    """
    _check_types(field, held)
    _check_experts(field, held)
    network = outline(folder)
    told, named = _told(network, held), type(network).__name__
    if missing := sorted(told["missing_keys"]):
        raise _damaged(
            f"{field}: {len(missing)} of the weights of {named} are not in its files, such as {missing[0]}, and would begin at"
            f" random{_instead(told['unexpected_keys'])}: take a model whose files hold all that its config.json asks for"
        )
    if others := sorted(told["mismatched_keys"]):
        name, found, wanted = others[0]
        raise _damaged(
            f"{field}: {name} is {_size(found)} in its files and {_size(wanted)} by its config.json: take the configuration"
            " that belongs to these weights"
        )
    return _left(held, told["unexpected_keys"], named, field)


def _left(held: Mapping[str, Any], unexpected: Collection[str], named: str, field: str) -> str | None:
    """What would be lost of the files. Raises StepFailed ModelDamaged where that is much of them."""
    left = sorted(name for name in unexpected if not HARMLESS.search(name))
    if not left:
        return None
    numbers = {name: math.prod(tensor["shape"]) for name, tensor in held.items()}
    share = sum(numbers.get(name, 0) for name in left) / max(1, sum(numbers.values()))
    what = f"{field}: {len(left)} of the weights in its files, such as {left[0]}, have no place in {named} by its config.json"
    if share > MOST_LEFT:
        raise _damaged(
            f"{what}: {share:.0%} of all its numbers would be lost; take the configuration that belongs to these weights"
        )
    return f"{what}: they are not trained, and lack in all that is made of it; take another configuration if they are meant"


def _told(network: Any, held: Mapping[str, Any]) -> Mapping[str, Collection[Any]]:
    """What transformers says of these weights when it loads them into the model, names that changed and all, but no numbers."""
    weights = {name: torch.empty(tensor["shape"], dtype=torch.bfloat16, device="meta") for name, tensor in held.items()}
    try:
        _, told = type(network).from_pretrained(
            None,
            config=network.config,
            state_dict=weights,
            device_map={"": "meta"},
            dtype=torch.bfloat16,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception:  # numbers may be needed after all; what is wrong will be seen in training
        traceback.print_exc()
        return {"missing_keys": (), "unexpected_keys": (), "mismatched_keys": ()}
    found: Mapping[str, Collection[Any]] = told
    return found


def _check_types(field: str, held: Mapping[str, Any]) -> None:
    """Counters may be whole numbers. A weight that is, or has 8 bits, is quantized, and nobody here reads its scales."""
    for name, tensor in held.items():
        if tensor["dtype"] not in FLOATS and name.endswith("weight") and len(tensor["shape"]) > 1:
            raise StepFailed(
                StepReason.ModelUnsupported,
                f"{field}: it is quantized already ({name} is {tensor['dtype']}): name the repository with its full weights",
            )


def _check_experts(field: str, held: Collection[str]) -> None:
    """Each expert has all that any has. transformers joins them into one tensor, and has no word for one that lacks."""
    found = [match for name in held if (match := EXPERT.fullmatch(name))]
    numbers = range(1 + max((int(match["number"]) for match in found), default=-1))
    wanted = {f"{match['before']}{number}{match['after']}" for match in found for number in numbers}
    if missing := sorted(wanted - set(held)):
        raise _damaged(
            f"{field}: {len(missing)} of the weights of its experts are not in its files, such as {missing[0]}: take a model"
            " whose files hold all that its config.json asks for"
        )


def _instead(unexpected: Collection[str]) -> str:
    """Weights under other names, where there are some."""
    return f" (its files hold {min(unexpected)} and {len(unexpected) - 1} more that have no place in it)" if unexpected else ""


def _size(shape: Collection[int]) -> str:
    return "×".join(map(str, shape))


def _damaged(why: str) -> StepFailed:
    return StepFailed(StepReason.ModelDamaged, why)
