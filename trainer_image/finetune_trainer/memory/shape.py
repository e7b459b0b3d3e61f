"""What of a model decides how much memory its training takes, from its config.json. No torch, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EMBEDDINGS = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class Shape:
    """What of a decoder-only transformer decides its memory."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_value: int  # key-value heads x head size
    query: int  # heads x head size
    vocabulary: int
    tied: bool
    parameters: int

    @property
    def embedding(self) -> int:
        """Parameters of input embedding and output head, which no method quantizes."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def linear(self) -> int:
        """Parameters of the layers' linear modules, those that QLoRA quantizes."""
        norms = (2 * self.layers + 1) * self.hidden
        return max(0, self.parameters - self.embedding - norms)

    def module(self, name: str) -> int:
        """Parameters of all modules of this name, in Llama's words; what is none of these is taken for an embedding."""
        wide = {"q_proj": self.query, "o_proj": self.query, "k_proj": self.key_value, "v_proj": self.key_value}
        wide |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), self.feed_forward)
        if "norm" in name or name in wide:
            return self.layers * self.hidden * wide.get(name, 1)
        return self.vocabulary * self.hidden

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter of this rank over every linear module of the layers."""
        query_output = 2 * (self.hidden + self.query)
        key_value = 2 * (self.hidden + self.key_value)
        return self.layers * rank * (query_output + key_value + 3 * (self.hidden + self.feed_forward))


def shape_of(config: Mapping[str, Any], parameters: int) -> Shape:
    """Shape from a model's config.json and its count of parameters. Raises KeyError for a field that isn't there."""
    text = config.get("text_config", config)
    hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
    head = int(text.get("head_dim") or hidden // heads)
    return Shape(
        layers=int(text["num_hidden_layers"]),
        hidden=hidden,
        feed_forward=int(text.get("intermediate_size") or 4 * hidden),
        heads=heads,
        key_value=int(text.get("num_key_value_heads") or heads) * head,
        query=heads * head,
        vocabulary=int(text["vocab_size"]),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        parameters=parameters,
    )
