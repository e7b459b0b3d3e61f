"""What a model's config.json alone tells of it, above all what decides how much memory its training takes. No torch, no I/O."""

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
    experts: int = 0  # parameters of routed experts: tensors of three dimensions, which no method quantizes

    @property
    def embedding(self) -> int:
        """Parameters of input embedding and output head, which no method quantizes."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def linear(self) -> int:
        """Parameters of the layers' linear modules, those that QLoRA quantizes."""
        norms = (2 * self.layers + 1) * self.hidden
        return max(0, self.parameters - self.embedding - norms - self.experts)

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


# What configurations call the same thing, the customary name first.
HIDDEN = ("hidden_size", "n_embd", "d_model")
HEADS = ("num_attention_heads", "n_head", "n_heads")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
FEED_FORWARD = ("intermediate_size", "n_inner", "ffn_dim", "d_ff")
# Families that read a field of their own, or none, whatever else their configuration says.
OWN_FEED_FORWARD = {**dict.fromkeys(("gpt2", "gpt_bigcode", "gptj", "codegen"), ("n_inner",)), "bloom": ()}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
# Models whose attention is never plain, by no field of theirs: sinks, layers that are not told where rows end, ALiBi.
NEVER_PLAIN = frozenset({"gpt_oss", "stablelm", "bloom"})
ATTENDS = frozenset({"full_attention", "sliding_attention"})
# Of attention that keeps its keys and values compressed, or those of another layer.
KEPT_OTHERWISE = ("kv_lora_rank", "num_kv_shared_layers")
ASKED_FOR = ("qwen2", "qwen3", "smollm3")  # they have a window only where use_sliding_window says so


def shape_of(config: Mapping[str, Any], parameters: int) -> Shape:
    """Shape from a model's config.json and its count of parameters. Raises KeyError for a field that isn't there."""
    text = config.get("text_config") or config
    hidden, heads, layers = int(_required(text, HIDDEN)), int(_required(text, HEADS)), int(_required(text, LAYERS))
    head = int(text.get("head_dim") or hidden // heads)
    feed_forward = int(_found(text, OWN_FEED_FORWARD.get(text.get("model_type", ""), FEED_FORWARD)) or 4 * hidden)
    return Shape(
        layers=layers,
        hidden=hidden,
        feed_forward=feed_forward,
        heads=heads,
        key_value=int(text.get("num_key_value_heads") or heads) * head,
        query=heads * head,
        vocabulary=int(text["vocab_size"]),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        parameters=parameters,
        experts=min(_experts(text, layers, hidden, feed_forward), parameters),
    )


def parameters_of(config: Mapping[str, Any]) -> int:
    """How many parameters a model of this config.json has, where nothing has counted them. Raises KeyError as shape_of.

    Embeddings, attention, gated feed-forward layers or experts, and norms; biases and what a family has besides are left out.
    """
    shape = shape_of(config, 2**62)
    attention = 2 * shape.hidden * (shape.query + shape.key_value)
    dense = 0 if shape.experts else 3 * shape.hidden * shape.feed_forward
    norms = (2 * shape.layers + 1) * shape.hidden
    return shape.embedding + shape.layers * (attention + dense) + shape.experts + norms


def positions_of(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model's configuration says that it reads at once; None where it doesn't say."""
    found = _found(config.get("text_config") or config, POSITIONS)
    return None if found is None else int(found)


def cached_numbers_of(config: Mapping[str, Any]) -> int | None:
    """How many numbers attention keeps of each token, keys and values of all layers; None where the configuration doesn't
    say, and where less is kept: of tokens behind a window, by layers that mix tokens otherwise, or compressed.
    """
    text = config.get("text_config") or config
    if plain_attention_of(config) is not None or any(text.get(name) for name in KEPT_OTHERWISE):
        return None
    try:
        shape = shape_of(config, 0)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    return 2 * shape.layers * shape.key_value


def plain_attention_of(config: Mapping[str, Any]) -> int | None:
    """How many tokens of a row each layer attends to plainly: all before it, and nothing else. None: any number of them.

    A window ends it; a soft cap, sinks, or layers that mix tokens otherwise leave nothing of it (0).
    """
    text = config.get("text_config") or config
    kind, layers = str(text.get("model_type", "")), set(text.get("layer_types") or ())
    mixes = any(name.startswith("mamba_") for name in text) or bool(layers - ATTENDS)
    if text.get("attn_logit_softcapping") or kind in NEVER_PLAIN or mixes:
        return 0
    if (layers and "sliding_attention" not in layers) or not text.get("use_sliding_window", not kind.startswith(ASKED_FOR)):
        return None
    window = text.get("sliding_window")
    return int(window) if window else None


def _experts(text: Mapping[str, Any], layers: int, hidden: int, feed_forward: int) -> int:
    """Parameters of all routed experts: gate, up and down of each, in the layers that have some."""
    count = int(_found(text, EXPERTS) or 0)
    width = int(text.get("moe_intermediate_size") or feed_forward)
    dense = int(text.get("first_k_dense_replace") or 0) + len(text.get("mlp_only_layers") or ())
    return max(0, layers - dense) // int(text.get("decoder_sparse_step") or 1) * count * 3 * hidden * width


def _found(text: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((text[name] for name in names if text.get(name) is not None), None)


def _required(text: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    found = _found(text, names)
    if found is None:
        raise KeyError(names[0])
    return found
