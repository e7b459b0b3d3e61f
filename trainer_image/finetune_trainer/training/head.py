"""The output layer and the loss over it, for rows on one line whose counted tokens are known before the GPU has them.

TRL's fused head looks on the device for the labels that count, and waits four times a micro-step for the number of them. Here
the collator counts, in a process of its own, and nothing is waited for. What is computed is TRL's kernel in both cases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

from finetune_trainer.data.tokenized import IGNORED

COUNTED = "counted"  # in a batch: the places whose next token counts
VOCABULARY_TILE = 32768


class Counting:
    """A collator of rows on one line that also tells which of their tokens count."""

    def __init__(self, collate: Callable[[Any], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, rows: Any) -> dict[str, Any]:
        batch = self._collate(rows)
        return batch | {COUNTED: torch.nonzero(batch["labels"][0, 1:] != IGNORED).flatten()}


def answer_counted(model: Any, network: Any) -> None:
    """Let `model`, which holds transformers' network, answer with log probabilities where it is told which tokens count.

    By its own forward, since what ranks wrap around it (DDP) must see each pass.
    """
    plain = model.forward

    def forward(*args: Any, counted: Tensor | None = None, **inputs: Any) -> Any:
        return plain(*args, **inputs) if counted is None else log_probabilities(network, inputs, counted)

    model.forward = forward


def log_probabilities(network: Any, inputs: dict[str, Any], counted: Tensor) -> Tensor:
    """The log probability of each counted token after those before it, by a model that each rank has whole."""
    read = {name: value for name, value in inputs.items() if name != "labels"}
    hidden = network.base_model(**read, use_cache=False).last_hidden_state[0].index_select(0, counted)
    wanted = inputs["labels"][0].index_select(0, counted + 1)
    factor, bound = scale_of(network)
    found: Tensor = ChunkedLogProbFunction.apply(hidden, *head_of(network), wanted, 1.0, VOCABULARY_TILE, bound, factor, ())[0]
    return found


def head_of(network: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the output layer."""
    head = network.get_output_embeddings()
    return head.weight, head.bias


def scale_of(network: Any) -> tuple[float, float | None]:
    """What some architectures multiply their logits by (Cohere, Granite), and the bound of those that bend them (Gemma)."""
    config = network.config.get_text_config()
    factor = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return float(factor), getattr(config, "final_logit_softcapping", None)


def is_scaled_otherwise(network: Any) -> bool:
    """Whether its logits are multiplied by what has no name here (Falcon-H1's `lm_head_multiplier`)."""
    config = network.config.get_text_config()
    others = ("output_multiplier", "lm_head_multiplier")
    return config.model_type == "hyperclovax" or any(getattr(config, name, None) is not None for name in others)
