"""A model without its numbers: its modules on torch's meta device, made of config.json alone, in seconds and on any machine.

What can be asked of it is asked before a GPU is taken, and of the model class itself, not of a list of architectures.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

TOKENS = 8


def outline(folder: Path, attention: str | None = None) -> Any:
    """The model as transformers would load it, each tensor a shape only. `attention` is the name of an implementation.

    Raises whatever transformers raises for a config.json that it can make no causal language model of.
    """
    from transformers import AutoModelForCausalLM

    config = configuration(folder)
    with torch.device("meta"):
        # Grouped products of experts have 16-bit shapes only.
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    network.train()
    return network


def configuration(folder: Path) -> Any:
    """config.json as transformers reads it, for any machine: without the implementations that its author's machine had.

    Code that a repository carries is never run, and nobody is asked whether it may be.
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config._attn_implementation = config._experts_implementation = None
    return config


def pass_through(network: Any, **more: Any) -> torch.Tensor:
    """Logits of a forward pass of an outline as training has them, with what else is given to it.

    Raises RuntimeError where what happens next depends on more than shapes.
    """
    ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    answer: Any = network(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **more)
    return torch.as_tensor(answer.logits)


@lru_cache
def unreached(folder: Path) -> frozenset[str]:
    """Names of the weights that no loss over text depends on, as a vision tower's; none where that can't be seen."""
    network = outline(folder, "eager")  # other implementations look into the mask, which has no numbers
    try:
        pass_through(network).float().sum().backward()
    except (RuntimeError, NotImplementedError):
        return frozenset()
    return frozenset(name for name, weight in network.named_parameters() if weight.grad is None)


def freeze(network: Any, idle: frozenset[str]) -> None:
    """Have all of a loaded model trained but these weights, which text never reaches, and say so."""
    for name, weight in network.named_parameters():
        if name in idle:
            weight.requires_grad_(False)
    if idle:
        print(f"{len(idle)} weights that text never reaches stay as they are, such as {min(idle)}", flush=True)


def modules_of(idle: frozenset[str]) -> frozenset[str]:
    """Names of the modules that hold these weights."""
    return frozenset(name.rpartition(".")[0] for name in idle)
