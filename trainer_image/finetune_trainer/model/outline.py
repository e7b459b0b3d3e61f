"""A model without its numbers: its modules on torch's meta device, made of config.json alone, in seconds and on any machine.

What can be asked of it is asked before a GPU is taken, and of the model class itself, not of a list of architectures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def outline(folder: Path, attention: str | None = None) -> Any:
    """The model as transformers would load it, each tensor a shape only. `attention` is the name of an implementation.

    Raises whatever transformers raises for a config.json that it can make no causal language model of.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        # Grouped products of experts have 16-bit shapes only.
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)


def pass_through(network: Any, **more: Any) -> None:
    """One forward pass of an outline over 8 tokens, as training has them, with what else is given to it.

    Raises RuntimeError where what happens next depends on more than shapes.
    """
    ids = torch.zeros(1, 8, dtype=torch.long, device="meta")
    network.train()
    with torch.no_grad():
        network(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **more)
