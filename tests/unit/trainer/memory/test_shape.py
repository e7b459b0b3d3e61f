"""What a model's config.json says of its size."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_trainer.memory.shape import Shape, cached_numbers_of, parameters_of, plain_attention_of, positions_of, shape_of

PLAIN = {
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "intermediate_size": 32,
    "vocab_size": 100,
    "num_key_value_heads": 2,
}
LARGE = 10**9  # parameters
ONE = 3 * 8 * 5  # gate, up and down of one expert of width 5


def test_a_config_is_read_by_the_names_that_families_use() -> None:
    shape = shape_of(PLAIN | {"head_dim": 3, "tie_word_embeddings": True}, LARGE)
    assert shape == Shape(
        layers=6,
        hidden=8,
        feed_forward=32,
        heads=4,
        key_value=6,
        query=12,
        vocabulary=100,
        tied=True,
        parameters=LARGE,
        experts=0,
    )
    gpt2 = {"n_embd": 8, "n_head": 4, "n_layer": 6, "vocab_size": 100}
    other = shape_of(gpt2, LARGE)
    assert (other.hidden, other.heads, other.layers, other.feed_forward) == (8, 4, 6, 32)
    assert (other.query, other.key_value, other.tied) == (8, 8, False)
    mpt = shape_of({"d_model": 8, "n_heads": 4, "n_layers": 6, "vocab_size": 100}, LARGE)
    assert (mpt.hidden, mpt.heads, mpt.layers) == (8, 4, 6)
    assert shape_of({"text_config": PLAIN, "tie_word_embeddings": True}, LARGE).tied
    assert shape_of({"text_config": PLAIN | {"tie_word_embeddings": True}}, LARGE).tied
    with pytest.raises(KeyError, match="num_hidden_layers"):
        shape_of({k: v for k, v in PLAIN.items() if k != "num_hidden_layers"}, LARGE)


@pytest.mark.parametrize(
    ("family", "own", "wide"),
    [
        ("gpt2", {}, 32),
        ("gpt2", {"n_inner": 20}, 20),
        ("gpt_bigcode", {}, 32),
        ("gptj", {}, 32),
        ("codegen", {}, 32),
        ("bloom", {"n_inner": 20}, 32),
        ("llama", {"n_inner": 20}, 24),
    ],
)
def test_a_family_with_a_width_of_its_own_reads_no_other(family: str, own: dict[str, int], wide: int) -> None:
    config = PLAIN | {"model_type": family, "intermediate_size": 24, **own}
    assert shape_of(config, LARGE).feed_forward == wide


@pytest.mark.parametrize(
    ("customary", "others"),
    [
        ("hidden_size", ("n_embd", "d_model")),
        ("num_attention_heads", ("n_head", "n_heads")),
        ("num_hidden_layers", ("n_layer", "n_layers")),
        ("intermediate_size", ("n_inner", "ffn_dim", "d_ff")),
        ("num_experts", ("num_local_experts", "n_routed_experts", "moe_num_experts")),
        ("max_position_embeddings", ("n_positions", "max_seq_len")),
    ],
)
def test_another_name_for_the_same_thing_is_known(customary: str, others: tuple[str, ...]) -> None:
    config = PLAIN | {"intermediate_size": 24, "num_experts": 4, "max_position_embeddings": 2048}
    for other in others:
        renamed = {other if name == customary else name: value for name, value in config.items()}
        assert (shape_of(renamed, LARGE), positions_of(renamed)) == (shape_of(config, LARGE), 2048)


@pytest.mark.parametrize(
    ("config", "experts"),
    [
        ({}, 0),
        ({"num_experts": 4, "moe_intermediate_size": 5}, 6 * 4 * ONE),
        ({"num_local_experts": 4, "moe_intermediate_size": 5}, 6 * 4 * ONE),
        ({"num_experts": 4}, 6 * 4 * 3 * 8 * 32),  # as wide as the feed-forward of a layer without experts
        ({"num_experts": 4, "moe_intermediate_size": 5, "first_k_dense_replace": 2}, 4 * 4 * ONE),
        ({"num_experts": 4, "moe_intermediate_size": 5, "mlp_only_layers": [0, 1, 5]}, 3 * 4 * ONE),
        ({"num_experts": 4, "moe_intermediate_size": 5, "decoder_sparse_step": 2}, 3 * 4 * ONE),
        ({"num_experts": 4, "moe_intermediate_size": 5, "first_k_dense_replace": 7}, 0),
    ],
)
def test_experts_lie_in_the_layers_that_have_some(config: dict[str, Any], experts: int) -> None:
    assert shape_of(PLAIN | config, LARGE).experts == experts
    assert shape_of(PLAIN | config, 50).experts <= 50, "a part of all parameters"


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 512}}, 512),
        ({}, None),
    ],
)
def test_positions_are_told_where_the_config_tells_them(config: dict[str, Any], positions: int | None) -> None:
    assert positions_of(config) == positions


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (PLAIN, 2 * 6 * 4),
        ({"text_config": PLAIN}, 2 * 6 * 4),
        (PLAIN | {"model_type": "mistral", "sliding_window": 4096}, None),  # fewer of tokens behind it
        (PLAIN | {"layer_types": ["linear_attention", "full_attention"]}, None),
        (PLAIN | {"kv_lora_rank": 512}, None),
        (PLAIN | {"num_kv_shared_layers": 2}, None),
        (PLAIN | {"hidden_size": "wide"}, None),
        ({}, None),
    ],
)
def test_what_attention_keeps_of_a_token_is_told_where_it_is_the_same_of_each(
    config: dict[str, Any], numbers: int | None
) -> None:
    assert cached_numbers_of(config) == numbers


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({}, None),
        ({"model_type": "gpt_oss"}, 0),
        ({"model_type": "stablelm"}, 0),
        ({"text_config": {"model_type": "bloom"}}, 0),
        ({"attn_logit_softcapping": 50.0}, 0),
        ({"mamba_d_state": 16}, 0),
        ({"layer_types": ["linear_attention", "full_attention"]}, 0),
        ({"layer_types": ["full_attention"], "sliding_window": 512}, None),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 512}, 512),
        ({"model_type": "mistral", "sliding_window": 4096}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 4096}, None),
        ({"model_type": "qwen3", "sliding_window": 4096}, None),
        ({"model_type": "smollm3", "sliding_window": 4096}, None),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True}, 4096),
        ({"model_type": "mistral", "sliding_window": 4096, "use_sliding_window": False}, None),
    ],
)
def test_attention_is_plain_up_to_a_window_and_not_at_all_with_anything_else(
    config: dict[str, Any], tokens: int | None
) -> None:
    assert plain_attention_of(config) == tokens


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("q_proj", 6 * 8 * 12),
        ("o_proj", 6 * 8 * 12),
        ("k_proj", 6 * 8 * 6),
        ("v_proj", 6 * 8 * 6),
        ("gate_proj", 6 * 8 * 32),
        ("up_proj", 6 * 8 * 32),
        ("down_proj", 6 * 8 * 32),
        ("input_layernorm", 6 * 8),
        ("embed_tokens", 100 * 8),
        ("lm_head", 100 * 8),
    ],
)
def test_a_module_trained_whole_is_as_large_as_it_is_in_all_layers(name: str, parameters: int) -> None:
    assert shape_of(PLAIN | {"head_dim": 3}, LARGE).module(name) == parameters


def test_what_is_quantized_and_what_is_adapted() -> None:
    shape = shape_of(PLAIN | {"head_dim": 3, "num_experts": 4, "moe_intermediate_size": 5}, LARGE)
    assert shape.embedding == 2 * 100 * 8
    assert shape.linear == LARGE - 2 * 100 * 8 - (2 * 6 + 1) * 8 - 6 * 4 * ONE
    assert shape_of(PLAIN | {"tie_word_embeddings": True}, LARGE).embedding == 100 * 8
    assert shape_of(PLAIN, 1).linear == 0
    of_a_layer = 2 * (8 + 12) + 2 * (8 + 6) + 3 * (8 + 32)
    assert shape.adapter(16) == 6 * 16 * of_a_layer


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (  # SmolLM2-135M
            {
                "hidden_size": 576,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "num_hidden_layers": 30,
                "intermediate_size": 1536,
                "vocab_size": 49152,
                "tie_word_embeddings": True,
            },
            134_515_008,
        ),
        (  # Mistral-7B
            {
                "hidden_size": 4096,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "num_hidden_layers": 32,
                "intermediate_size": 14336,
                "vocab_size": 32000,
            },
            7_241_732_096,
        ),
        (  # Mixtral-8x7B, but for the gates of its routers: 32 x 8 x 4096
            {
                "hidden_size": 4096,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "num_hidden_layers": 32,
                "intermediate_size": 14336,
                "vocab_size": 32000,
                "num_local_experts": 8,
            },
            46_702_792_704 - 32 * 8 * 4096,
        ),
    ],
)
def test_parameters_are_counted_as_these_models_have_them(config: dict[str, Any], parameters: int) -> None:
    assert parameters_of(config) == parameters
