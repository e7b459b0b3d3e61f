"""Whether llm-compressor and bitsandbytes can quantize a model, told by its modules: of its outline before a GPU is taken, of
the merged model when it is made.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from finetune_trainer.contract.formats import Quantization
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed

GROUPS = (128, 64, 32)  # weights that share one scale; those that vLLM's kernels have, best first
HEAD = "lm_head"  # stays as it is: few of the weights, and the most sensitive ones
# Architectures of which llm-compressor knows which layer writes what another reads. For any other it takes Llama's pairs, and
# where no layer has their names it only rounds, without a word. (Those that it names and fails on are left out.)
AWQ_KNOWS = frozenset(
    {
        "AfmoeForCausalLM",
        "Cohere2ForCausalLM",
        "Cohere2MoeForCausalLM",
        "Cohere2VisionForConditionalGeneration",
        "CohereForCausalLM",
        "Ernie4_5_MoeForCausalLM",
        "Exaone4ForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Gemma3ForConditionalGeneration",
        "Glm4MoeForCausalLM",
        "Glm4MoeLiteForCausalLM",
        "GlmMoeDsaForCausalLM",
        "GraniteForCausalLM",
        "Llama4ForConditionalGeneration",
        "LlamaForCausalLM",
        "Mistral3ForConditionalGeneration",
        "MistralForCausalLM",
        "MuseGlimmerForConditionalGeneration",
        "NanbeigeForCausalLM",
        "Olmo3ForCausalLM",
        "OlmoForCausalLM",
        "Phi3ForCausalLM",
        "Phi3VForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen2_5OmniModel",
        "Qwen2_5OmniThinkerForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "Qwen3NextForCausalLM",
        "Qwen3_5ForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
        "SeedOssForCausalLM",
        "Step3p5ForCausalLM",
    }
)
AWQ_FAILS = frozenset({"BloomForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"})
MOST = 0.5  # of the weights that may stay as they are in an artifact that is called quantized


def check(model_folder: Path, _scratch: Path, asked: Collection[Quantization]) -> None:
    """Raises StepFailed ModelNotConvertible where one of these can't be made of the model."""
    from finetune_trainer.model.outline import outline

    network = outline(model_folder)
    for quantization in asked:
        check_network(network, quantization)


def check_network(network: Any, quantization: Quantization) -> None:
    """The same of a model in memory or of an outline."""
    architecture = type(network).__name__
    if quantization == "AWQ" and architecture not in AWQ_KNOWS:
        raise _refused(f"llm-compressor can't make AWQ of {architecture}, whose layers it doesn't know; take W4A16")
    if not _linear(network):
        raise _refused(f"{quantization} quantizes linear layers, and {architecture} has none; take GGUF")
    if quantization == "NF4" and (share := _experts(network)) > MOST:
        raise _refused(
            f"NF4 leaves the experts of {architecture} in 16 bits, {share:.0%} of its weights; take GGUF, or FP8 or W4A16 of"
            " format CompressedTensors"
        )
    if quantization in ("W4A16", "AWQ"):
        group_size(network)


def group_size(network: Any) -> int:
    """The largest group that divides every row which is quantized. Raises StepFailed where none does."""
    rows = {module.in_features for module in _linear(network)}
    for name, weight in network.named_parameters():
        if _of_experts(name, weight):  # llm-compressor makes linear layers of them
            rows |= set(weight.shape[1:])
    fits = [size for size in GROUPS if all(row % size == 0 for row in rows)]
    if not fits:
        raise _refused(
            f"4-bit groups need rows of a multiple of {GROUPS[-1]} values, and this model's have {sorted(rows)}; take FP8"
        )
    return fits[0]


def _linear(network: Any) -> list[Any]:
    from torch.nn import Linear

    return [m for n, m in network.named_modules() if isinstance(m, Linear) and not n.endswith(HEAD)]


def _experts(network: Any) -> float:
    """Share of a model's weights that are experts in one tensor, which bitsandbytes doesn't see."""
    experts = sum(weight.numel() for name, weight in network.named_parameters() if _of_experts(name, weight))
    return float(experts / sum(weight.numel() for weight in network.parameters()))


def _of_experts(name: str, weight: Any) -> bool:
    return "experts" in name and weight.ndim == 3


def _refused(why: str) -> StepFailed:
    return StepFailed(StepReason.ModelNotConvertible, f"spec.artifacts: {why}")
