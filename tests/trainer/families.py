"""Tiny random models of many architectures: two layers or as many as its pattern needs, width 64, a window of 8 tokens.

What a configuration class names otherwise, or needs beyond the shape, stands beside the family's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "sliding_window": 8,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4}
NARROW_EXPERTS = EXPERTS | {"moe_intermediate_size": 32}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}
LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
DEEPSEEK: dict[str, Any] = LATENT | {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "topk_method": "greedy",
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "ministral3": {},
    "mixtral": EXPERTS,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": NARROW_EXPERTS | {"shared_expert_intermediate_size": 48},
    "qwen3": {},
    "qwen3_moe": NARROW_EXPERTS,
    "gemma": {},
    "gemma2": WINDOWS | {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
    "gemma3_text": WINDOWS | {"query_pre_attn_scalar": 16},
    "gpt_oss": EXPERTS | WINDOWS,
    "phi": {"num_key_value_heads": 4, "intermediate_size": 256},  # llama.cpp knows no other, and there is no other
    "phi3": {"pad_token_id": 0},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": {},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "stablelm": {},
    "starcoder2": {},
    "olmo2": {},
    "olmoe": EXPERTS
    | {"num_key_value_heads": 4, "sliding_window": None},  # it has none, and of one here transformers' implementations differ
    "granite": {},
    "granitemoe": EXPERTS,
    "cohere": {},
    "cohere2": WINDOWS,
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "smollm3": {"pad_token_id": 0},
    "ernie4_5": {},
    "glm4": {"pad_token_id": 0},
    "exaone4": WINDOWS,
    "seed_oss": {},
    "helium": {},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 96},
    "bloom": {"n_layer": 2, "n_head": 4},
}


def configuration(family: str, **more: Any) -> Any:
    """The configuration of a tiny model of this family; `more` replaces what the table says."""
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **SHAPE | FAMILIES[family] | more)


def with_vision(**more: Any) -> Any:
    """The configuration of a Gemma 3 with a vision tower, which text never reaches; `more` is said of its part for text."""
    from transformers import Gemma3Config

    text = configuration("gemma3_text", **more).to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = vision | {"image_size": 28, "patch_size": 14}
    return Gemma3Config(text_config=text, vision_config=tower, mm_tokens_per_image=4, **more)


def save(family: str, folder: Path, **more: Any) -> Path:
    """Save a random model of this family, in float32; the same one each time."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(configuration(family, **more)).save_pretrained(folder)
    return folder
