"""The base model in memory: device and number type by precision, weights by method, adapters, tokenizer.

method   frozen weights          trained weights                compute
QLoRA    NF4, FP4 or LLM.int8    adapters in BF16 or float32    BF16, FP16 or FP32
LoRA     in the compute type     adapters in float32            BF16, FP16 or FP32
Full     none                    all, in float32                the same, by autocast

Modules that are trained whole beside adapters (saved_modules.py) are in float32.
"""

from __future__ import annotations

import json
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune_trainer import saved_modules
from finetune_trainer.adapter_fields import NF4, Quantization
from finetune_trainer.contract import SHARES_WEIGHTS, Devices, ExitCode, Method, Precision, Strategy, Training
from finetune_trainer.failures import StepFailed
from finetune_trainer.zero import STAGES

# In PEFT's words. A whole decomposition takes far longer for large weights; 16 iterations come within 1 % of its values even on
# random weights, all of whose directions are alike.
INITS = {"Gaussian": "gaussian", "PiSSA": "pissa_niter_16", "OLoRA": "olora"}
AMPERE = (8, 0)  # compute capability from which on a GPU has bf16


@dataclass(frozen=True)
class Compute:
    """Where a model runs and in which type it multiplies."""

    device: str  # "cuda" or "cpu"
    dtype: torch.dtype


def compute_for(precision: Precision, devices: Devices) -> Compute:
    """Resolve `training.precision` on this machine.

    Raises StepFailed BadConfig for a type that the device can't train in, and when a promised GPU is missing.
    """
    if devices.gpus == 0:
        if precision is Precision.FP16:
            raise _refused("training.precision: CPUs can't train in FP16; set FP32 or Auto")
        return Compute("cpu", torch.bfloat16 if precision is Precision.BF16 else torch.float32)
    if not torch.cuda.is_available():
        raise _refused("the pod was promised a GPU but CUDA finds none: check the device plugin and the image's CUDA")
    has_bf16 = torch.cuda.get_device_capability() >= AMPERE
    if precision is Precision.BF16 and not has_bf16:
        name = torch.cuda.get_device_name()
        raise _refused(f"training.precision: {name} has no BF16; set FP16 or Auto")
    auto = torch.bfloat16 if has_bf16 else torch.float16
    wanted = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16, Precision.FP32: torch.float32}
    return Compute("cuda", wanted.get(precision, auto))


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer with a pad token that isn't its end token, where its vocabulary has one to spare.

    Nothing is added to the vocabulary: the embedding would have to grow, and every later format with it. The loss never
    depends on this, because its mask comes with the rows; serving programs, though, take pad = end for "never stop".
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        spare = [t for t in (tokenizer.unk_token, *tokenizer.all_special_tokens) if t and t != tokenizer.eos_token]
        tokenizer.pad_token = spare[0] if spare else tokenizer.eos_token
    return tokenizer


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
    attention: str = "sdpa",
    *,
    strategy: Strategy = Strategy.DDP,
    quantization: Quantization = NF4,
) -> Any:
    """Base model as `method` trains on it, from safetensors alone; code that a repository carries is never run.

    `attention` is transformers' name of an implementation; all but sdpa are for training's packed rows. Where the ranks of
    `strategy` share out weights, 4-bit ones lie in the compute type, which can be split. `quantization` is that of a QLoRA
    weight.
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
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False, **options)
    _keep_layout(model)
    if method is Method.QLORA and compute.device == "cpu":  # the quantizer image, which loads others, has no bitsandbytes
        _mend_8_bit_layers(model)
    return model


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


def add_adapters(model: Any, training: Training) -> Any:
    """PEFT model with fresh adapters; the seed decides their weights.

    Raises StepFailed BadConfig when `training.lora` names no module of this model, or `init` needs another rank.
    """
    from peft import LoraConfig, get_peft_model

    lora = training.lora
    if lora.init == "Orthogonal" and lora.rank % 2:
        raise _refused(f"training.lora.init Orthogonal needs an even rank, not {lora.rank}")
    saved = saved_modules.paths(model, lora)
    targets: str | list[str] = "all-linear" if lora.targets == ["all-linear"] else lora.targets
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rank_stabilized,
        use_dora=lora.dora,
        init_lora_weights=INITS.get(lora.init, True),
        target_modules=targets,
        modules_to_save=saved or None,
        ensure_weight_tying=saved_modules.are_tied(model, saved),
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(training.seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        known = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        message = f"training.lora.targets: {', '.join(lora.targets)} not in this model; its linear modules: {known}"
        raise _refused(message) from error
    if lora.init == "Orthogonal":
        _begin_orthogonal(adapted)
    if lora.dora:
        _keep_type(adapted)
    saved_modules.answer_in_compute_type(adapted)
    return adapted


def _begin_orthogonal(adapted: Any) -> None:
    """A and B of random values over alternate rows of one orthogonal matrix: B A is zero, and neither of them is.

    PEFT's own `orthogonal`, with its scale, makes adapters of the base's number type, which can't be trained over 4- or
    8-bit weights.
    """
    from peft.tuners.lora import LoraLayer

    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            rank = len(a)
            rows, _ = torch.linalg.qr(torch.randn(rank, rank))
            a.data.copy_(torch.randn(a.shape[1], rank // 2).mm(rows[0::2]).t() / 10)
            b.data.copy_(torch.randn(len(b), rank // 2).mm(rows[1::2]) / 10)


def _keep_type(adapted: Any) -> None:
    """Let DoRA's 4-bit layers answer in the type they are asked in. PEFT's answer in that of DoRA's lengths, float32, and so
    would every layer behind them: twice the memory, and nothing that flash attention takes.
    """
    from peft.tuners.lora import LoraLayer

    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.register_forward_hook(lambda _, asked, answer: answer.to(asked[0].dtype))


def trained_weights_type(method: Method, compute: Compute, strategy: Strategy = Strategy.DDP) -> torch.dtype:
    """BF16 for QLoRA in BF16, as its paper has it; float32 for all else, lest small updates round away.

    FSDP shares out weights of one type only, so adapters then have the base's. With ZeRO all have the compute type, and the
    optimizer a copy in float32.
    """
    if strategy in STAGES or (strategy is Strategy.FSDP and method is not Method.FULL):
        return compute.dtype
    return torch.bfloat16 if method is Method.QLORA and compute.dtype is torch.bfloat16 else torch.float32


def peak_memory(device: str) -> int:
    """Most bytes held so far: of the GPU's memory, or resident on a CPU."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        outside = total - free - torch.cuda.memory_reserved()  # the CUDA context and what libraries take for themselves
        return int(torch.cuda.max_memory_reserved() + outside)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _refused(message: str) -> StepFailed:
    return StepFailed(ExitCode.BAD_CONFIG, "BadConfig", message)
