"""One copy in 16 bits of what attention and a gated MLP read, where all weights are trained.

Hidden states are in float32 then, and autocast makes a copy for each product that reads them: five in a layer, each of which
has a gradient that is brought back to float32 and added up there. One copy for each norm is the same numbers; the gradients of
its readers are added up in 16 bits, as the fused LoRA path does it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

READERS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj"))  # that read one input and nothing else of it


def copy_once(network: nn.Module) -> int:
    """Let the modules that have such products read one copy of their input wherever autocast would make several. Returns how
    many do."""
    found = 0
    for module in network.modules():
        if any(all(isinstance(getattr(module, name, None), nn.Linear) for name in names) for names in READERS):
            module.register_forward_pre_hook(_copied, with_kwargs=True)
            found += 1
    return found


def _copied(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The first argument, or the one named hidden_states, in autocast's type."""
    read = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(read, Tensor) or read.dtype is not torch.float32 or not torch.is_autocast_enabled(read.device.type):
        return None
    copy = read.to(torch.get_autocast_dtype(read.device.type))
    return ((copy, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": copy})
