"""How many bytes training takes on one device, term by term. No torch, no I/O.

With T tokens per micro-step, L layers, hidden size h, feed-forward size f, k = key-value heads x head size, rank r and
w bytes per number of the compute type, the saved activations of one layer are, per token,

    w (4f + 8h + 2k + 7r)   plain PyTorch in 16 bits (measured on Mistral's shape in bf16: 180.4 KiB against 180.2 here)
    w (4f + 6h + 2k + 7r)   plain PyTorch in float32, where a norm keeps no second copy of its input
    w (3f + 6h + 2k + 7r)   with Liger's RMSNorm and SwiGLU, which the trainer takes on GPUs
    w (2f + 6h + 2k + 2r)   on the fused LoRA path as well (fused_lora.py)
    w (3.5f + 13h + 2k + 7r)   with dropout: each module's own input, dropped out, and a mask of one byte a number
    w (7f + 12h + 6k + 7r)  with DoRA: outputs before they are scaled
    w (7.5f + 19h + 6k + 7r)   with both, and the expanded weights beside it
    + 4wh                   for adapters in float32 beside 16-bit weights, which copy their inputs: neither the fused path,
                            nor dropout, which copies them in any case
    + 5wh                   where all weights are trained: hidden states in float32, and a 16-bit copy for each product
    w h                     with full checkpointing, and one layer at a time as above while it is computed again

Two moments can be the highest: the loss head, with all that is saved, or the first layer of the backward pass, with its
gradients. tests/unit/test_memory.py holds the sum against what was measured on an H100.

The fixed part (CUDA context, workspaces) and the share lost to fragmentation are rules of thumb; the trainer measures
the peak and reports it beside this estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_trainer.adapter_fields import Quantization
from finetune_trainer.contract import Method, Precision, Training
from finetune_trainer.objective_fields import OF_PAIRS, WITH_REFERENCE, Objective
from finetune_trainer.shape import Shape

GIB = 1 << 30
BLOCK_SCALES = 4 / 64  # bytes for each 4-bit weight: a 32-bit scale per 64 weights
ROUNDED_SCALES = 1 / 64 + 4 / 16384  # double quantized: an 8-bit scale per 64 weights, a 32-bit one per 256 of those
SCALE_BYTES = 4  # of 8-bit weights, one for each row
GPU_FIXED = int(1.1 * GIB)  # CUDA context, cuBLAS and Triton workspaces
CPU_FIXED = int(0.9 * GIB)  # the interpreter with torch, transformers and TRL
GPU_FRAGMENTATION = 0.01  # of what is allocated step by step, with CUDA's expandable segments
HEAP_FRAGMENTATION = 0.7  # the same in glibc's heap, measured on four shapes with tensors of 0.1 to 8 MiB
HEAP_LIMIT = 32 << 20  # bytes from which on glibc maps each block by itself
HEAD_TILE = (4096, 32768)  # TRL computes the loss in tiles of tokens x vocabulary, so logits never exist as a whole
HEAD_COPIES = 8.25  # of a tile in float32, in the torch operations that do on CPUs what is one kernel on GPUs
Code = Literal["PyTorch", "Liger", "Fused", "Dropout", "DoRA", "DoRADropout"]
KEPT: dict[Code, tuple[float, int, int, int]] = {  # of f, h, k and r above
    "PyTorch": (4, 8, 2, 7),
    "Liger": (3, 6, 2, 7),
    "Fused": (2, 6, 2, 2),
    "Dropout": (3.5, 13, 2, 7),
    "DoRA": (7, 12, 6, 7),
    "DoRADropout": (7.5, 19, 6, 7),
}
SHARDED = frozenset({"weights", "adapter", "gradients", "optimizer"})


@dataclass(frozen=True)
class Setting:
    """What may be chosen where memory is short (setting.py)."""

    micro_batch_size: int
    checkpointing: bool
    shards: int = 1  # ranks that share out weights, gradients and optimizer state (FSDP)


def estimate(
    shape: Shape, training: Training, setting: Setting, row_tokens: int, on_gpu: bool, code: Code | None = None
) -> dict[str, int]:
    """Bytes by term for one device; their sum is the predicted peak. `row_tokens` is the longest row's length.

    `code` is what computes a layer; unset, what the trainer takes.
    """
    code = code or _code(training, setting, on_gpu)
    width = number_bytes(training.precision, on_gpu)
    tokens = _sequences(training, setting) * row_tokens
    layer = width * tokens * _kept(shape, training, code, width)
    masks = 0 if on_gpu else width * _masks(shape, training, setting, row_tokens)
    weights = _weights(shape, training, width, on_gpu)
    # At the backward pass's first layer: a weight in full, gradients of the layer's inputs and outputs.
    wide = shape.feed_forward * (2 if code == "Fused" else 1)  # the fused path computes the MLP's inner product again
    backward = weights.pop("expandedWeight", 0) + width * tokens * (wide + 2 * shape.hidden)
    if setting.checkpointing:
        stream = width if training.method is not Method.FULL else 4
        kept, backward = stream * tokens * shape.layers * shape.hidden, backward + layer + masks
    else:
        kept = shape.layers * (layer + masks)
    tile = min(tokens, HEAD_TILE[0]) * min(shape.vocabulary, HEAD_TILE[1])
    head = width * tile if on_gpu else int(4 * HEAD_COPIES * tile)
    head += 4 * width * tokens * shape.hidden
    if training.method is Method.FULL:
        head += 4 * shape.vocabulary * shape.hidden  # its weight's gradient, before it joins those of earlier micro-batches
    if training.objective is Objective.DISTILLATION:
        head *= 2  # the teacher's tile beside it
    stepwise = {"activations": kept, "backward": backward, "lossHead": max(0, head - backward)}
    weights = sharded(weights, shape, setting.shards)
    if code == "Fused" and training.method is Method.QLORA and training.quantization.double_quantization:
        weights["scales"] = int(BLOCK_SCALES * shape.linear)  # the fused path expands them once and keeps both
    if on_gpu:
        reserve = GPU_FRAGMENTATION * (sum(stepwise.values()) + weights.get("gradients", 0))
    else:
        reserve = (kept + backward) * _heap_share(width * tokens * shape.feed_forward)
        reserve += stepwise["lossHead"] * _heap_share(4 * tile)
    return weights | stepwise | {"fragmentation": int(reserve), "fixed": GPU_FIXED if on_gpu else CPU_FIXED}


def _heap_share(tensor: int) -> float:
    """What the C library's heap keeps beside tensors of so many bytes; larger ones go back to the system when they end."""
    return HEAP_FRAGMENTATION if tensor < HEAP_LIMIT else 0.0


def _sequences(training: Training, setting: Setting) -> int:
    """What one forward pass takes: a row of preferences gives two, chosen and rejected."""
    return setting.micro_batch_size * (2 if training.objective in OF_PAIRS else 1)


def _code(training: Training, setting: Setting, on_gpu: bool) -> Code:
    if not on_gpu or setting.shards > 1:  # FSDP takes whole layers: the trainer leaves them as they are
        return "PyTorch"
    if training.method is Method.FULL:
        return "Liger"
    if training.lora.dora:
        return "DoRADropout" if training.lora.dropout > 0 else "DoRA"
    if training.lora.dropout > 0:
        return "Dropout"
    return "Liger" if training.quantization.bits == 8 else "Fused"  # the fused path knows no 8-bit weights


def _kept(shape: Shape, training: Training, code: Code, width: int) -> int:
    """Numbers that one layer keeps of each token until its backward pass."""
    feed_forward, hidden, key_value, rank = KEPT[code]
    adapted = training.method is not Method.FULL
    if width == 4 and code == "PyTorch":
        hidden -= 2
    if width < 4 and not adapted:
        hidden += 5
    if training.method is Method.LORA and width < 4 and code in ("PyTorch", "Liger", "DoRA"):
        hidden += 4
    own = rank * training.lora.rank if adapted else 0
    count = feed_forward * shape.feed_forward + hidden * shape.hidden + key_value * shape.key_value + own
    loose = code == "PyTorch" and adapted and (training.lora.dropout > 0 or training.lora.dora)
    return int(1.6 * count if loose else count)  # a rule of thumb where nothing was measured


def _masks(shape: Shape, training: Training, setting: Setting, row_tokens: int) -> int:
    """Numbers that a layer keeps of attention's mask on CPUs, and of keys and values repeated for each head beside it.

    Packed rows of a micro-batch make one long line; one row alone needs no mask.
    """
    rows = _sequences(training, setting)
    if rows == 1 and not training.packing:
        return 0
    mask = (rows * row_tokens) ** 2 if training.packing else rows * row_tokens**2
    return mask + 2 * rows * row_tokens * (shape.query - shape.key_value)


def frozen_bytes(shape: Shape, training: Training, *, on_gpu: bool) -> int:
    """Of weights that are only read: quantized for QLoRA, else in the compute type."""
    width = number_bytes(training.precision, on_gpu)
    linear: float = width
    if training.method is Method.QLORA:
        linear = _quantized_bytes(training.quantization, shape)
    return int(linear * shape.linear) + width * (shape.parameters - shape.linear)


def _quantized_bytes(quantization: Quantization, shape: Shape) -> float:
    """Of one linear weight with its share of the scales. An 8-bit row is as long as the hidden state or longer."""
    if quantization.bits == 8:
        return 1 + SCALE_BYTES / shape.hidden
    return 0.5 + (ROUNDED_SCALES if quantization.double_quantization else BLOCK_SCALES)


def _weights(shape: Shape, training: Training, width: int, on_gpu: bool) -> dict[str, int]:
    """What doesn't depend on the batch: weights, gradients, optimizer state, and the largest weight in full."""
    embedding = shape.vocabulary * shape.hidden
    if training.method is Method.FULL:
        eight_bit = "8bit" in training.optimizer or (training.optimizer == "Auto" and on_gpu)
        # Where adapters are trained, they are switched off instead.
        copy = {"reference": 4 * shape.parameters} if training.objective in WITH_REFERENCE else {}
        return {
            "weights": 4 * shape.parameters,
            "gradients": 4 * shape.parameters,
            # The Trainer gives embeddings 32-bit states whatever the optimizer.
            "optimizer": 2 * shape.parameters + 6 * embedding if eight_bit else 8 * shape.parameters,
            # Autocast keeps them until the step ends.
            "castWeights": width * (shape.linear + embedding) if width < 4 else 0,
        } | copy
    adapter = shape.adapter(training.lora.rank)
    quantized = training.method is Method.QLORA
    trained = width if quantized and training.precision is not Precision.FP16 else 4
    largest = shape.hidden * max(shape.feed_forward, shape.query)
    return {
        "weights": frozen_bytes(shape, training, on_gpu=on_gpu),
        "adapter": trained * adapter,
        "gradients": trained * adapter,
        "optimizer": 2 * trained * adapter,
        "expandedWeight": 2 * width * largest if quantized else 0,
        "castWeights": width * shape.linear if training.lora.dora and training.lora.dropout > 0 else 0,
    }


def sharded(weights: dict[str, int], shape: Shape, shards: int) -> dict[str, int]:
    """The same terms for one of several ranks that share them out: two whole layers are there at a time, one at work and
    one on its way."""
    if shards == 1:
        return weights
    layer = weights["weights"] // max(1, shape.layers)
    split = {name: -(-count // shards) if name in SHARDED else count for name, count in weights.items()}
    return split | {"gathered": 2 * layer}


def number_bytes(precision: Precision, on_gpu: bool) -> int:
    """Bytes of one number of the compute type."""
    if precision is Precision.AUTO:
        return 2 if on_gpu else 4
    return 4 if precision is Precision.FP32 else 2
