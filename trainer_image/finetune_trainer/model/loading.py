"""The base model in memory: device and number type by precision, weights by method, adapters, tokenizer.

method   frozen weights          trained weights                compute
QLoRA    NF4, FP4 or LLM.int8    adapters in BF16 or float32    BF16, FP16 or FP32
LoRA     in the compute type     adapters in float32            BF16, FP16 or FP32
Full     none                    all, in float32                the same, by autocast

Modules that are trained whole beside adapters (saved_modules.py) are in float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.contract.adapters import NF4, Quantization
from finetune_trainer.contract.devices import SHARES_WEIGHTS, Strategy
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.training import Method
from finetune_trainer.failures import StepFailed, first_line
from finetune_trainer.model.compute import Compute
from finetune_trainer.model.outline import configuration
from finetune_trainer.model.own_template import with_own_template
from finetune_trainer.ranks.zero import STAGES

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer with a pad token that isn't its end token, where its vocabulary has one to spare.

    Nothing is added to the vocabulary: the embedding would have to grow, and every later format with it. The loss never
    depends on this, because its mask comes with the rows; serving programs, though, take pad = end for "never stop".
    Raises StepFailed TokenizerUnsupported, and ChatTemplateRefused.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of its class, which raises what it likes
        file = folder / "tokenizer_config.json"
        own = "auto_map" in json.loads(file.read_text()) if file.is_file() else False
        why = "it asks for code of its own (auto_map in tokenizer_config.json), which is never run: remove that entry"
        raise StepFailed(
            StepReason.TokenizerUnsupported, f"spec.model: its tokenizer can't be used: {why if own else first_line(error)}"
        ) from error
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        spare = [t for t in (tokenizer.unk_token, *tokenizer.all_special_tokens) if t and t != tokenizer.eos_token]
        tokenizer.pad_token = spare[0] if spare else tokenizer.eos_token
    return with_own_template(tokenizer, folder)


def end_tokens(tokenizer: Any, folder: Path) -> tuple[int, ...]:
    """Token ids that end an answer: the tokenizer's, and those that the model's generation settings add."""
    settings = folder / "generation_config.json"
    named = json.loads(settings.read_text()).get("eos_token_id") if settings.is_file() else None
    more = named if isinstance(named, list) else [named]
    return tuple({t for t in (tokenizer.eos_token_id, *more) if t is not None})


def load_base(
    folder: Path,
    method: Method,
    compute: Compute,
    attention: str | None = None,
    *,
    strategy: Strategy = Strategy.DDP,
    quantization: Quantization = NF4,
) -> Any:
    """Base model as `method` trains on it, from safetensors alone; code that a repository carries is never run.

    `attention` is transformers' name of an implementation, for training's packed rows; without one it is torch's SDPA, or plain
    code where the model's class has no other. Where the ranks of `strategy` share out weights, 4-bit ones lie in the compute
    type, which can be split. `quantization` is that of a QLoRA weight.
    """
    from transformers import AutoModelForCausalLM

    masters = method is Method.FULL and strategy not in STAGES  # ZeRO keeps its own, shared out
    device = torch.cuda.current_device() if compute.device == "cuda" else "cpu"
    options: dict[str, Any] = {"dtype": torch.float32 if masters else compute.dtype, "attn_implementation": attention}
    if strategy is not Strategy.ZERO3:  # there each rank loads its share, and DeepSpeed says where to
        options["device_map"] = {"": device}
    if method is Method.QLORA:
        storage = compute.dtype if strategy in SHARES_WEIGHTS else torch.uint8
        options["quantization_config"] = quantized(quantization, compute.dtype, storage)
    options |= {"config": configuration(folder), "use_safetensors": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    _mend_generation(model)
    _keep_layout(model)
    if method is Method.QLORA and compute.device == "cpu":  # the quantizer image, which loads others, has no bitsandbytes
        _mend_8_bit_layers(model)
    return model


def forget_generation(model: Any) -> None:
    """Let a model that only answers, and is not saved, generate by what generate() is told, and by no setting of its folder:
    beams, forced tokens and penalties are nothing that all engines have, and some need a package.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()


def _mend_generation(model: Any) -> None:
    """Let greedy settings say nothing of sampling: transformers saves no model whose settings contradict themselves, as many
    published ones do (do_sample false beside a temperature).
    """
    settings = getattr(model, "generation_config", None)
    if settings is not None and not settings.do_sample:
        settings.update(**dict.fromkeys(SAMPLING))


def _keep_layout(model: Any) -> None:
    """Forbid bitsandbytes to repack 4-bit weights for BF16 inference, as it does in place on CPUs with AVX512-BF16.

    Repacked weights multiply in BF16 whatever the compute type, pass no gradient on (a validation pass within training
    would end the training), and can't be dequantized for the merge.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _mend_8_bit_layers(model: Any) -> None:
    """Let 8-bit layers on CPUs multiply their expanded weights in evaluation as they do in training, and keep their scales.

    There bitsandbytes rounds the inputs to 8 bits in evaluation only: a validation would judge another model than the one
    in training, and the merge would be held against it. (On GPUs it rounds them in both.) PEFT's DoRA puts a copy without
    scales in a weight's place at each pass, from which the layer would read them again.
    """
    from bitsandbytes.nn import Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            module.init_8bit_state()
            module.init_8bit_state = lambda: None
            module.train()
            module.train = lambda *_, layer=module: layer  # eval() asks for train(False)


def quantized(quantization: Quantization, dtype: torch.dtype, storage: torch.dtype) -> Any:
    """The storage that QLoRA trains on: 4 bits, expanded to `dtype` for each product and held in tensors of type `storage`,
    or 8 bits, which GPUs multiply by inputs rounded to 8 bits, but for outliers (LLM.int8).
    """
    from transformers import BitsAndBytesConfig

    if quantization.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type.lower(),
        bnb_4bit_use_double_quant=quantization.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=storage,
    )
