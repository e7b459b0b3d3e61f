"""The fastest setting of training that fits the memory there is, and the least change that would where none does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from finetune_trainer.contract.adapters import Quantization
from finetune_trainer.contract.combinations import selective_goes
from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.reports import FitFacts
from finetune_trainer.contract.training import Method, Recomputing, Training
from finetune_trainer.memory.estimate import GIB, estimate
from finetune_trainer.memory.setting import Setting, layer_code
from finetune_trainer.memory.shape import Shape

ASSUMED_GPU = 24 * GIB  # where nothing says how much memory the GPUs have: a common small card

# Relative time of a step: recomputing all adds half of the forward and input-gradient work; what Selective keeps torch decides
# in Python, at each operator, but on the fused path, whose MLPs make their inner products again. Each micro-step pays a fixed
# price that its tokens share: on GPUs the kernels that Python starts one by one, for QLoRA also the expansion of all 4-bit
# weights (both in benchmarks/h100.md); on CPUs little else.
RECOMPUTE: dict[Recomputing, float] = {"Off": 1, "Selective": 1.35, "Full": 1.5}
FUSED_RECOMPUTE: dict[Recomputing, float] = {"Off": 1, "Selective": 1.21, "Full": 1.46}  # measured with 1 row and 8 of 2,048
OVERHEAD_TOKENS = {Method.QLORA: 600, Method.LORA: 850, Method.FULL: 1200}
CPU_OVERHEAD_TOKENS = OVERHEAD_TOKENS | {Method.LORA: 96, Method.FULL: 96}
FILLED = 0.97  # of the memory, where layers keep what there is room for: such peaks were 1 to 3 % below their estimates
GOOD_ENOUGH = 1.03  # a smaller micro-batch is taken if it costs no more than this


class DoesNotFit(Exception):
    """No allowed setting fits. The message names the smallest and what would fit instead."""


@dataclass(frozen=True)
class Ranks:
    """How several ranks train one model."""

    strategy: Strategy = Strategy.DDP
    count: int = 1


ALONE = Ranks()


def fit(
    shape: Shape, training: Training, row_tokens: int, available: int | None, on_gpu: bool, ranks: Ranks = ALONE
) -> FitFacts:
    """The fastest allowed setting whose estimate stays within `available` bytes of one device, of a training that goes together
    (contract/combinations), its globalBatchSize one rank's share.

    Where that is unknown a card of 24 GiB is assumed, which is not filled up, and nothing is refused. Else raises DoesNotFit
    where nothing fits.
    """
    row = training.max_length if training.packing else row_tokens
    limit = available if available is not None else ASSUMED_GPU
    needs = {s: estimate(shape, training, s, row, on_gpu) for s in _settings(training, ranks, on_gpu)}
    fitting = [s for s in needs if sum(needs[s].values()) <= limit]
    smallest = min(needs, key=lambda s: sum(needs[s].values()))
    if not fitting and available is not None:
        raise DoesNotFit(_advice(shape, training, smallest, row, available, on_gpu))
    overhead = (OVERHEAD_TOKENS if on_gpu else CPU_OVERHEAD_TOKENS)[training.method]
    fused = layer_code(training, ranks.strategy, on_gpu) == "Fused"
    chosen = _fastest(fitting, overhead, FUSED_RECOMPUTE if fused else RECOMPUTE, row) if fitting else smallest
    if fused and chosen.checkpointing == "Selective" and training.gradient_checkpointing == "Auto" and available is not None:
        chosen = _filled(chosen, shape, training, row, available)
    terms = estimate(shape, training, chosen, row, on_gpu)
    return FitFacts(
        predicted_bytes=sum(terms.values()),
        available_bytes=available,
        micro_batch_size=chosen.micro_batch_size,
        gradient_checkpointing=chosen.checkpointing,
        kept_layers=chosen.kept_layers or None,
        terms=terms,
    )


def _settings(training: Training, ranks: Ranks, on_gpu: bool) -> Iterator[Setting]:
    sizes = [training.micro_batch_size] if training.micro_batch_size else divisors(training.global_batch_size)
    sizes = [size for size in sizes if size >= training.learning.least_rows]
    if training.packing and not on_gpu:
        sizes = sizes[:1]  # with a mask, every row of a micro-batch would be compared with every other
    modes = _modes(training, ranks.strategy)
    return (Setting(size, mode, ranks.strategy, ranks.count) for size in sizes for mode in modes)


def _modes(training: Training, strategy: Strategy) -> tuple[Recomputing, ...]:
    """Selective keeps as much as 8-bit layers do in any case."""
    asked = training.gradient_checkpointing
    without = training.quantization.bits == 8 or not selective_goes(training.method, strategy)
    if asked == "Auto":
        return ("Off", "Full") if without else ("Off", "Selective", "Full")
    return ("Off",) if without and asked == "Selective" else (asked,)


def _fastest(settings: list[Setting], overhead: int, recompute: dict[Recomputing, float], row: int) -> Setting:
    """`overhead` is what a micro-step costs beside its tokens' work, in tokens."""

    def cost(setting: Setting) -> float:
        shared = 1 + overhead / (setting.micro_batch_size * row)
        return shared * recompute[setting.checkpointing]

    best = min(cost(s) for s in settings)
    return min((s for s in settings if cost(s) <= best * GOOD_ENOUGH), key=lambda s: (s.micro_batch_size, cost(s)))


def _filled(setting: Setting, shape: Shape, training: Training, row: int, limit: int) -> Setting:
    """The setting with as many layers that keep all as fit beside the rest, but for what estimates err by."""
    more = (replace(setting, kept_layers=count) for count in range(shape.layers, 0, -1))
    # One by one, as a layer more need not take more: gradients or a last one as large as an embedding may hide it.
    fitting = (s for s in more if sum(estimate(shape, training, s, row, on_gpu=True).values()) <= limit * FILLED)
    return next(fitting, setting)


def _advice(shape: Shape, training: Training, smallest: Setting, row: int, available: int, on_gpu: bool) -> str:
    """What the smallest allowed setting needs, and the least change that would fit."""
    needed = sum(estimate(shape, training, smallest, row, on_gpu).values())
    said = (
        f"{training.method.value} with microBatchSize {smallest.micro_batch_size} and rows of {row} tokens needs"
        f" {_gib(needed)}, the device has {_gib(available)}"
    )
    least = replace(smallest, micro_batch_size=training.learning.least_rows, checkpointing="Full")
    if sum(estimate(shape, training, least, row, on_gpu).values()) <= available:
        return f"{said}; it fits with spec.training.gradientCheckpointing: Auto and without microBatchSize"
    length = _longest(shape, training, row, available, on_gpu, least)
    if length is not None:
        return f"{said}; it fits with spec.training.maxLength: {length}"
    others: list[tuple[str, dict[str, Any]]] = [
        (f"spec.training.method: {method.value}", {"method": method})
        for method in (Method.LORA, Method.QLORA)
        if method is not training.method
    ]
    if training.quantization.bits == 8:
        others = [("spec.training.quantization.bits: 4", {"quantization": Quantization(bits=4)})]
    if training.lora.modules_to_save:
        none = training.lora.model_copy(update={"modules_to_save": []})
        others.insert(0, ("spec.training.lora.modulesToSave: []", {"lora": none}))
    for remedy, change in others:
        if sum(estimate(shape, training.model_copy(update=change), least, row, on_gpu).values()) <= available:
            return f"{said}; it fits with {remedy}"
    return f"{said}; take a device with more memory or a smaller model"


def _longest(shape: Shape, training: Training, row: int, available: int, on_gpu: bool, least: Setting) -> int | None:
    """Longest row, a multiple of 64 tokens, with which the smallest micro-batch fits."""
    lengths = range(row // 64 * 64, 127, -64)
    return next((n for n in lengths if sum(estimate(shape, training, least, n, on_gpu).values()) <= available), None)


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
