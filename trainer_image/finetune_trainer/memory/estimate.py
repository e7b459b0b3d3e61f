"""How many bytes training takes on one device, term by term. No torch, no I/O.

With T tokens per micro-step, L layers, hidden size h, feed-forward size f, k = key-value heads x head size, rank r and
w bytes per number of the compute type, the saved activations of one layer are, per token,

    w (4f + 8h + 2k + 7r)   plain PyTorch in 16 bits (measured on Mistral's shape in bf16: 180.4 KiB against 180.2 here)
    w (4f + 6h + 2k + 7r)   plain PyTorch in float32, where a norm keeps no second copy of its input
    w (3f + 6h + 2k + 7r)   with Liger's RMSNorm and SwiGLU, which the trainer takes on GPUs
    w (2f + 6h + 2k + 2r)   on the fused LoRA path as well (speed/fused_lora.py)
    w (3.5f + 13h + 2k + 7r)   with dropout: each module's own input, dropped out, and a mask of one byte a number
    w (7f + 12h + 6k + 7r)  with DoRA: outputs before they are scaled
    w (7.5f + 19h + 6k + 7r)   with both, and the expanded weights beside it
    + 4wh                   for adapters in float32 beside 16-bit weights, which copy their inputs: neither the fused path,
                            nor dropout, which copies them in any case
    + 2wh                   where all weights are trained, for hidden states in float32 (speed/casts.py: one 16-bit copy for all
                            that read one; on CPUs and with ZeRO's stage 3 5wh); not with FSDP, whose layers are in 16 bits
    w h                     with full checkpointing, and one layer at a time as above while it is computed again
    w (2f + 5h + 2k + 7r)   with selective checkpointing: its input, the products' answers and attention's; the rest for one
                            layer at a time
    w (6h + 2k + 2r)        with selective checkpointing on the fused path, whose MLPs make 2f again, one layer at a time; with
                            it, too, as many layers as fit keep them

Two moments can be the highest: the loss head, with all that is saved, or the first layer of the backward pass, with its
gradients. Those of earlier micro-batches lie beside either; where one micro-batch is a whole step there are none, and each
layer's gradients come as its activations go. Where the layers' work is recorded (speed/recorded_layers.py) both moments lie
side by side, as recorded work gives no memory back, and so do copies of what goes into the layers and out of them.
tests/unit/trainer/memory/test_memory.py holds the sum against what was measured on an H100 and an H200.

Of P numbers in modules that are trained whole beside the adapters (P = hV for an embedding of V tokens, and for a head)

    4P + 4P + 8P            are copy, gradient (dense, for an embedding as well) and AdamW's two states, all in float32
    + 4hV                   the head's own gradient, before it joins that of earlier micro-batches; where the embedding is the
                            same weight it waits for that one's, through the whole backward pass
    or + 8hV                at the end of the step, when no activations are left: the gradients of a tied embedding and its
                            head, or on CPUs the optimizer's temporaries

The fixed part (CUDA context, workspaces) and the share lost to fragmentation are rules of thumb; the trainer measures
the peak and reports it beside this estimate.
"""

from __future__ import annotations

from finetune_trainer.contract.adapters import Quantization
from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.training import Method, Precision, Training
from finetune_trainer.memory.setting import Code, Setting, layer_code, records_layers
from finetune_trainer.memory.shape import EMBEDDINGS, Shape

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
REDUCED_AT_ONCE = 50_000_000  # numbers in a bucket of gradients or weights that ZeRO exchanges
LIVE_PARAMETERS = 300_000_000  # that ZeRO's stage 3 keeps whole, at work or on their way
KEPT: dict[Code, tuple[float, int, int, int]] = {  # of f, h, k and r above
    "PyTorch": (4, 8, 2, 7),
    "Liger": (3, 6, 2, 7),
    "Fused": (2, 6, 2, 2),
    "Dropout": (3.5, 13, 2, 7),
    "DoRA": (7, 12, 6, 7),
    "DoRADropout": (7.5, 19, 6, 7),
}
# How many numbers as wide as the MLP (f) are alive at once in its backward pass. The fused path computes the inner product
# again, and with products in FP8 has both of its gradients in one byte a number beside them. With dropout and DoRA, PEFT
# computes the gradients one after the other and adds them up: measured on an H100.
AT_ONCE: dict[Code, int] = {"Fused": 2, "Dropout": 5, "DoRA": 6, "DoRADropout": 6}
STATE = frozenset({"gradients", "optimizer"})
SHARDED: dict[Strategy, frozenset[str]] = {  # what ranks share out
    Strategy.FSDP: STATE | {"weights", "adapter"},
    Strategy.ZERO2: STATE,
    Strategy.ZERO3: STATE | {"weights", "adapter"},
}
MASTER_BYTES = 12  # what ZeRO's optimizer keeps of a trained number: the number and Adam's two moments, all in float32
RECORDED_BUFFERS = 3  # hidden states at fixed addresses: into the layers, out of them, and the gradient of the latter
RECORDS_FIXED = int(0.15 * GIB)  # of some eight records, measured on an H200
NCCL_FIXED = int(0.8 * GIB)  # its buffers, measured with two GPUs


def estimate(
    shape: Shape, training: Training, setting: Setting, row_tokens: int, on_gpu: bool, code: Code | None = None
) -> dict[str, int]:
    """Bytes by term for one device; their sum is the predicted peak. `row_tokens` is the longest row's length.

    `code` is what computes a layer; unset, what the trainer takes.
    """
    code = code or layer_code(training, setting.strategy, on_gpu)
    width = number_bytes(training.precision, on_gpu)
    tokens = _sequences(training, setting) * row_tokens
    layer = width * tokens * _kept(shape, training, code, width, setting.strategy)
    masks = 0 if on_gpu else width * _masks(shape, training, setting, row_tokens)
    eight_bit = "8bit" in training.optimizer or (training.optimizer == "Auto" and on_gpu and setting.strategy not in SHARDED)
    weights = _weights(shape, training, width, on_gpu, eight_bit)
    # At the backward pass's first layer: a weight in full, gradients of the layer's inputs and outputs.
    wide = (AT_ONCE.get(code, 1) + training.in_fp8) * shape.feed_forward
    backward = weights.pop("expandedWeight", 0) + width * tokens * (wide + 2 * shape.hidden)
    if setting.checkpointing == "Off":
        kept = shape.layers * (layer + masks)
    elif setting.checkpointing == "Selective" and code == "Fused":
        inner = width * tokens * int(KEPT[code][0]) * shape.feed_forward
        kept, backward = shape.layers * (layer - inner) + setting.kept_layers * inner, backward + inner
    else:
        stream = tokens * shape.hidden * (width if training.method is not Method.FULL else 4)
        products = width * tokens * _products(shape, training) if setting.checkpointing == "Selective" else 0
        kept, backward = shape.layers * (stream + products), backward + layer - products + masks
    recorded = records_layers(training, setting, on_gpu=on_gpu)
    if on_gpu and setting.ranks == 1 and setting.micro_batch_size == training.global_batch_size and not recorded:
        weights["gradients"] = max(0, weights["gradients"] - kept)
    tile = min(tokens, HEAD_TILE[0]) * min(shape.vocabulary, HEAD_TILE[1])
    head = width * tile if on_gpu else int(4 * HEAD_COPIES * tile)
    head += 4 * width * tokens * shape.hidden
    whole = _trained_whole(shape, training)
    waiting = 4 * shape.module("lm_head") if shape.tied and "lm_head" in whole else 0  # for the embedding's, of the same weight
    if training.method is Method.FULL or ("lm_head" in whole and not waiting):
        head += 4 * shape.vocabulary * shape.hidden  # its weight's gradient, before it joins those of earlier micro-batches
    if training.learning.with_teacher:
        head *= 2  # the teacher's tile beside it
    stepwise = {"activations": kept, "backward": backward, "lossHead": max(0, head - backward), "headGradient": waiting}
    if recorded:  # what the layers take stays theirs, so that a validation's layers take more
        stepwise["lossHead"] = max(head, backward) if training.evaluate_every_steps else head
        weights["recorded"] = RECORDS_FIXED + RECORDED_BUFFERS * width * tokens * shape.hidden + weights["adapter"]
    stepwise["lastGradient"] = max(0, _last_gradient(shape, whole, on_gpu) - sum(stepwise.values()))
    weights = _shared_out(weights, shape, training, setting, width)
    if on_gpu and setting.ranks > 1:
        weights["communication"] = NCCL_FIXED
    if code == "Fused" and training.method is Method.QLORA and training.quantization.double_quantization:
        weights["scales"] = int(BLOCK_SCALES * shape.linear)  # the fused path expands them once and keeps both
    if on_gpu:
        reserve = GPU_FRAGMENTATION * (sum(stepwise.values()) + weights["gradients"])
    elif setting.checkpointing != "Off":
        reserve = 0  # the trainer has freed memory given back at once
    else:
        reserve = (kept + backward) * _heap_share(width * tokens * shape.feed_forward)
        reserve += stepwise["lossHead"] * _heap_share(4 * tile)
    return weights | stepwise | {"fragmentation": int(reserve), "fixed": GPU_FIXED if on_gpu else CPU_FIXED}


def _heap_share(tensor: int) -> float:
    """What the C library's heap keeps beside tensors of so many bytes; larger ones go back to the system when they end."""
    return HEAP_FRAGMENTATION if tensor < HEAP_LIMIT else 0.0


def _sequences(training: Training, setting: Setting) -> int:
    """What one forward pass takes: a row of preferences gives two, chosen and rejected."""
    return setting.micro_batch_size * (2 if training.learning.of_pairs else 1)


def _kept(shape: Shape, training: Training, code: Code, width: int, strategy: Strategy) -> int:
    """Numbers that one layer keeps of each token until its backward pass."""
    feed_forward, hidden, key_value, rank = KEPT[code]
    adapted = training.method is not Method.FULL
    if width == 4 and code == "PyTorch":
        hidden -= 2
    if width < 4 and not adapted and strategy is not Strategy.FSDP:
        hidden += 2 if code == "Liger" else 5
    if training.method is Method.LORA and width < 4 and code in ("PyTorch", "Liger", "DoRA"):
        hidden += 4
    own = rank * training.lora.rank if adapted else 0
    count = feed_forward * shape.feed_forward + hidden * shape.hidden + key_value * shape.key_value + own
    loose = code == "PyTorch" and adapted and (training.lora.dropout > 0 or training.lora.dora)
    return int(1.6 * count if loose else count)  # a rule of thumb where nothing was measured


def _products(shape: Shape, training: Training) -> int:
    """Numbers that a layer's products and its attention answer with for each token: what speed/activations.py keeps."""
    own = 0 if training.method is Method.FULL else 7 * training.lora.rank
    return 2 * (shape.feed_forward + shape.query + shape.key_value + shape.hidden) + own


def _masks(shape: Shape, training: Training, setting: Setting, row_tokens: int) -> int:
    """Numbers that a layer keeps of attention's mask on CPUs, and of keys and values repeated for each head beside it.

    Packed rows of a micro-batch make one long line; one row alone needs no mask.
    """
    rows = _sequences(training, setting)
    if rows == 1 and not training.packing:
        return 0
    mask = (rows * row_tokens) ** 2 if training.packing else rows * row_tokens**2
    return mask + 2 * rows * row_tokens * (shape.query - shape.key_value)


def _trained_whole(shape: Shape, training: Training) -> set[str]:
    """Names of the modules that are trained beside adapters; a tied output layer is the embedding."""
    if training.method is Method.FULL:
        return set()
    named = {name.rpartition(".")[2] for name in training.lora.modules_to_save}
    return named | set(EMBEDDINGS) if shape.tied and named & set(EMBEDDINGS) else named


def _last_gradient(shape: Shape, whole: set[str], on_gpu: bool) -> int:
    """When no activations are left: the embedding's gradient beside the head's where they are tied, or the optimizer's
    temporaries on CPUs.
    """
    largest = max((shape.module(name) for name in whole), default=0)
    return 4 * largest * (2 if shape.tied or not on_gpu else 1)


def frozen_bytes(shape: Shape, training: Training, *, on_gpu: bool) -> int:
    """Bytes of the weights that are only read: quantized for QLoRA, else in the compute type."""
    width = number_bytes(training.precision, on_gpu)
    linear: float = width
    if training.method is Method.QLORA:
        linear = _quantized_bytes(training.quantization, shape)
    return int(linear * shape.linear) + width * (shape.parameters - shape.linear)


def _quantized_bytes(quantization: Quantization, shape: Shape) -> float:
    """Bytes of one linear weight with its share of the scales. An 8-bit row is as long as the hidden state or longer."""
    if quantization.bits == 8:
        return 1 + SCALE_BYTES / shape.hidden
    return 0.5 + (ROUNDED_SCALES if quantization.double_quantization else BLOCK_SCALES)


def _weights(shape: Shape, training: Training, width: int, on_gpu: bool, eight_bit: bool) -> dict[str, int]:
    """What doesn't depend on the batch: weights, gradients, optimizer state, and the largest weight in full."""
    embedding = shape.vocabulary * shape.hidden
    if training.method is Method.FULL:
        # Where adapters are trained, they are switched off instead.
        copy = {"reference": 4 * shape.parameters} if training.learning.with_reference else {}
        return {
            "weights": 4 * shape.parameters,
            "gradients": 4 * shape.parameters,
            # The Trainer gives embeddings 32-bit states whatever the optimizer.
            "optimizer": 2 * shape.parameters + 6 * embedding if eight_bit else 8 * shape.parameters,
            # Autocast keeps them until the step ends.
            "castWeights": width * (shape.linear + shape.experts + embedding) if width < 4 else 0,
        } | copy
    adapter = shape.adapter(training.lora.rank)
    whole = _trained_whole(shape, training) - ({"lm_head"} if shape.tied else set())
    modules = 4 * sum(map(shape.module, whole))
    quantized = training.method is Method.QLORA
    trained = width if quantized and training.precision is not Precision.FP16 else 4
    largest = shape.hidden * max(shape.feed_forward, shape.query)
    return {
        "weights": frozen_bytes(shape, training, on_gpu=on_gpu),
        "adapter": trained * adapter,
        "trainedModules": modules,
        "gradients": trained * adapter + modules,
        "optimizer": 2 * (trained * adapter + modules),
        "expandedWeight": 2 * width * largest if quantized else 0,
        "castWeights": width * shape.linear if training.lora.dora and training.lora.dropout > 0 else 0,
    }


def _shared_out(weights: dict[str, int], shape: Shape, training: Training, setting: Setting, width: int) -> dict[str, int]:
    """The same terms for one of several ranks that share them out, and what is whole for a moment: with FSDP two layers, one
    at work and one on its way; with ZeRO's stage 3 as many weights as it is told; gradients by the bucket."""
    if setting.strategy not in SHARDED:
        return weights
    gathered = {"gathered": 2 * (weights["weights"] // max(1, shape.layers))}
    if setting.strategy is not Strategy.FSDP:
        trained = shape.parameters if training.method is Method.FULL else shape.adapter(training.lora.rank)
        weights = _with_masters(weights, training, trained, width)
        whole = min(shape.parameters, LIVE_PARAMETERS) if setting.strategy is Strategy.ZERO3 else 0
        gathered = {"gathered": width * (whole + 2 * min(trained, REDUCED_AT_ONCE))}
    shared = SHARDED[setting.strategy]
    return {name: -(-count // setting.ranks) if name in shared else count for name, count in weights.items()} | gathered


def _with_masters(weights: dict[str, int], training: Training, trained: int, width: int) -> dict[str, int]:
    """ZeRO keeps what is trained in the compute type, and in its optimizer once more in float32."""
    # Its step takes all gradients in float32 as well: 3.6 GiB beside the rest, as measured, of a rank's billion.
    changed = {"gradients": (width + 4) * trained, "optimizer": MASTER_BYTES * trained}
    if training.method is Method.FULL:
        return weights | changed | {"weights": width * trained, "castWeights": 0}
    return weights | changed | {"adapter": width * trained}


def number_bytes(precision: Precision, on_gpu: bool) -> int:
    """Bytes of one number of the compute type."""
    if precision is Precision.AUTO:
        return 2 if on_gpu else 4
    return 4 if precision is Precision.FP32 else 2
