"""The memory estimate: against published and measured figures, and what it chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.reports import FitFacts
from finetune_trainer.contract.training import Recomputing, Training
from finetune_trainer.memory.choice import DoesNotFit, Ranks, divisors, fit
from finetune_trainer.memory.estimate import GIB, HEAP_FRAGMENTATION, estimate, frozen_bytes
from finetune_trainer.memory.setting import Setting, records_layers
from finetune_trainer.memory.shape import Shape, shape_of

MISTRAL_CONFIG: dict[str, Any] = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
MISTRAL = shape_of(MISTRAL_CONFIG, 7_241_732_096)
LLAMA_8B = shape_of(MISTRAL_CONFIG | {"vocab_size": 128256}, 8_030_261_248)
LLAMA_1B = shape_of(
    MISTRAL_CONFIG
    | {
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
    852_559_872,
)
SMOLLM = shape_of(
    {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    134_515_008,
)


def training(**fields: Any) -> Training:
    return Training.model_validate({"globalBatchSize": 16} | fields)


def test_parameters_are_told_apart() -> None:
    assert MISTRAL.linear == 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert MISTRAL.adapter(16) == 41_943_040
    assert SMOLLM.linear == 134_515_008 - 49152 * 576 - 61 * 576


def test_activations_match_what_was_measured_on_mistrals_shape() -> None:
    terms = estimate(MISTRAL, training(precision="BF16"), Setting(1, "Off"), 1, on_gpu=False)
    assert terms["activations"] / 32 / 1024 == pytest.approx(180.4, rel=0.005)  # KiB per layer and token


def test_weights_of_a_4_bit_mistral() -> None:
    terms = estimate(MISTRAL, training(), Setting(1, "Off"), 1, on_gpu=True)
    assert terms["weights"] / GIB == pytest.approx(3.35 + 0.5, rel=0.02)


def test_scales_that_are_not_rounded_take_more_but_are_those_of_the_fused_path() -> None:
    plain = training(quantization={"doubleQuantization": False})
    terms = estimate(MISTRAL, plain, Setting(1, "Off"), 512, on_gpu=True)
    others = 2 * (MISTRAL.parameters - MISTRAL.linear)
    assert terms["weights"] - others == pytest.approx(MISTRAL.linear * 4.5 / 8, abs=1)
    assert terms["weights"] == frozen_bytes(MISTRAL, plain, on_gpu=True)
    assert "scales" not in terms
    rounded = estimate(MISTRAL, training(), Setting(1, "Off"), 512, on_gpu=True)
    assert rounded["scales"] == MISTRAL.linear * 4 // 64
    assert rounded["weights"] - others == pytest.approx(MISTRAL.linear * 4.127 / 8, rel=1e-4)
    fp4 = training(quantization={"type": "FP4"})
    assert estimate(MISTRAL, fp4, Setting(1, "Off"), 512, on_gpu=True) == rounded


def test_8_bit_weights_take_a_byte_each_and_are_trained_on_without_the_fused_path() -> None:
    eight = training(quantization={"bits": 8})
    terms = estimate(MISTRAL, eight, Setting(1, "Off"), 512, on_gpu=True)
    others = 2 * (MISTRAL.parameters - MISTRAL.linear)
    assert terms["weights"] - others == pytest.approx(MISTRAL.linear * (1 + 4 / 4096), abs=1)
    assert terms["weights"] == frozen_bytes(MISTRAL, eight, on_gpu=True)  # so is a teacher
    assert "scales" not in terms
    in_4_bits = estimate(MISTRAL, training(), Setting(1, "Off"), 512, on_gpu=True, code="Liger")
    assert terms["activations"] == in_4_bits["activations"]


@pytest.mark.parametrize(
    ("name", "shape", "fields", "rows", "length", "checkpointing", "published_gib", "tolerance"),
    [
        ("8B QLoRA on a 4090, 2 x 2048", LLAMA_8B, {"lora": {"rank": 8}}, 2, 2048, "Full", 7.4, 0.2),
        ("8B LoRA on a 4090, 2 x 2048", LLAMA_8B, {"method": "LoRA", "lora": {"rank": 8}}, 2, 2048, "Full", 16.2, 0.2),
    ],
)
def test_peaks_that_torchtune_publishes(
    name: str,
    shape: Shape,
    fields: dict[str, Any],
    rows: int,
    length: int,
    checkpointing: Recomputing,
    published_gib: float,
    tolerance: float,
) -> None:
    terms = estimate(shape, training(precision="BF16", **fields), Setting(rows, checkpointing), length, on_gpu=True)
    allocated = sum(terms.values()) - terms["fixed"]  # what torch's allocator counts, as torchtune does
    assert allocated / GIB == pytest.approx(published_gib, rel=tolerance), (name, terms)


@pytest.mark.parametrize(
    ("name", "fields", "available_gib", "expected"),
    [
        ("80 GB: no checkpointing", {}, 80, (8, "Off")),
        ("24 GB: few rows without beat more rows with checkpointing", {}, 24, (2, "Off")),
        ("12 GB: some MLPs make their inner products again", {}, 12, (1, "Selective")),
        ("9 GB: only with checkpointing", {}, 9, (2, "Full")),
        ("asked for", {"microBatchSize": 4, "gradientCheckpointing": "Full"}, 80, (4, "Full")),
        ("bf16 base", {"method": "LoRA"}, 24, (1, "Off")),
        ("bf16 base, 80 GB: as many rows as fit", {"method": "LoRA"}, 80, (8, "Off")),
    ],
)
def test_choice_for_mistral_with_rows_of_2048(
    name: str, fields: dict[str, Any], available_gib: int, expected: tuple[int, Recomputing]
) -> None:
    facts = fit(MISTRAL, training(**fields), 2048, available_gib * GIB, on_gpu=True)
    assert (facts.micro_batch_size, facts.gradient_checkpointing) == expected, (name, facts)
    assert facts.predicted_bytes == sum(facts.terms.values()) <= available_gib * GIB


def test_the_choice_divides_the_global_batch_and_prefers_small_ones_that_cost_nothing() -> None:
    facts = fit(SMOLLM, training(globalBatchSize=12), 4096, 80 * GIB, on_gpu=True)
    assert 12 % facts.micro_batch_size == 0
    assert facts.micro_batch_size < 12
    assert facts.gradient_checkpointing == "Off"


def test_unknown_memory_refuses_nothing() -> None:
    facts = fit(MISTRAL, training(method="Full"), 2048, None, on_gpu=True)
    assert facts.available_bytes is None
    assert (facts.micro_batch_size, facts.gradient_checkpointing) == (1, "Full")


def test_packing_counts_full_rows() -> None:
    assert fit(SMOLLM, training(packing=True, maxLength=2048), 100, None, on_gpu=True).predicted_bytes > (
        fit(SMOLLM, training(packing=False, maxLength=2048, microBatchSize=1), 100, None, on_gpu=True).predicted_bytes
    )


@pytest.mark.parametrize(
    ("fields", "row", "available_gib", "remedy"),
    [
        ({"microBatchSize": 16}, 2048, 10, "gradientCheckpointing: Auto and without microBatchSize"),
        ({"gradientCheckpointing": "Off"}, 2048, 10, "gradientCheckpointing: Auto and without microBatchSize"),
        ({"maxLength": 131072}, 131072, 24, "spec.training.maxLength: "),
        ({"method": "LoRA"}, 2048, 12, "spec.training.method: QLoRA"),
        ({"quantization": {"bits": 8}}, 2048, 8, "spec.training.quantization.bits: 4"),
        ({"method": "Full"}, 2048, 24, "spec.training.method: LoRA"),
        ({"lora": {"modulesToSave": ["embed_tokens", "lm_head"]}}, 2048, 8, "spec.training.lora.modulesToSave: []"),
        ({"method": "Full"}, 2048, 2, "more memory or a smaller model"),
    ],
)
def test_what_does_not_fit_is_told_what_would(fields: dict[str, Any], row: int, available_gib: int, remedy: str) -> None:
    with pytest.raises(DoesNotFit, match=r"needs \d+\.\d GiB, the device has") as caught:
        fit(MISTRAL, training(**fields), row, available_gib * GIB, on_gpu=True)
    assert remedy in str(caught.value)


def test_the_length_that_is_named_fits() -> None:
    with pytest.raises(DoesNotFit) as caught:
        fit(MISTRAL, training(maxLength=131072), 131072, 24 * GIB, on_gpu=True)
    length = int(str(caught.value).rsplit(": ", 1)[1])
    assert fit(MISTRAL, training(maxLength=length), length, 24 * GIB, on_gpu=True)
    with pytest.raises(DoesNotFit):
        fit(MISTRAL, training(maxLength=length + 64), length + 64, 24 * GIB, on_gpu=True)


@pytest.mark.parametrize(("length", "row"), [(8128, 8192), (128, 200)])
def test_the_length_that_is_named_is_the_longest_multiple_of_64_that_fits(length: int, row: int) -> None:
    given = training(maxLength=row, globalBatchSize=1)
    available = sum(estimate(MISTRAL, given, Setting(1, "Full"), length, on_gpu=True).values())
    with pytest.raises(DoesNotFit, match=rf"maxLength: {length}$"):
        fit(MISTRAL, given, row, available, on_gpu=True)
    assert fit(MISTRAL, given, length, available, on_gpu=True).predicted_bytes == available


def test_what_fits_to_the_byte_fits() -> None:
    asked = training(microBatchSize=2)
    available = sum(estimate(MISTRAL, asked, Setting(1, "Full"), 2048, on_gpu=True).values())
    with pytest.raises(DoesNotFit, match=r"gradientCheckpointing: Auto and without microBatchSize$"):
        fit(MISTRAL, asked, 2048, available, on_gpu=True)


def test_what_a_cpus_heap_keeps_is_a_share_of_all_small_tensors() -> None:
    found = estimate(SMOLLM, training(), Setting(1, "Off"), 64, on_gpu=False)
    kept = found["activations"] + found["backward"] + found["lossHead"]
    assert found["fragmentation"] == pytest.approx(HEAP_FRAGMENTATION * kept, abs=1)


def test_experts_are_cast_as_other_weights_are() -> None:
    given = training(method="Full", precision="BF16")
    plain, mixed = (
        estimate(shape, given, Setting(1, "Off"), 64, on_gpu=True) for shape in (SMOLLM, replace(SMOLLM, experts=10**7))
    )
    assert mixed["castWeights"] == plain["castWeights"] > 0


def test_a_cpu_counts_four_bytes_and_the_copies_of_a_tile_of_logits() -> None:
    on_cpu = estimate(SMOLLM, training(), Setting(1, "Off"), 64, on_gpu=False)
    assert on_cpu["lossHead"] + on_cpu["backward"] == 4 * 8.25 * 64 * 32768 + 16 * 64 * 576
    in_bf16 = estimate(SMOLLM, training(precision="BF16"), Setting(1, "Off"), 64, on_gpu=False)
    in_full = estimate(SMOLLM, training(), Setting(1, "Off"), 64, on_gpu=False)
    # In float32 a norm keeps no second copy of its input.
    assert in_full["activations"] == 2 * in_bf16["activations"] - 30 * 4 * 64 * 2 * 576


# The ten rows of TRL on one H100 (torch 2.11): Mistral's shape, LoRA r16, torch's allocated bytes at their peak. Padded rows
# were cut at 1024 tokens, packed ones filled to 2048. `code` is what the estimate counts: plain PyTorch or Liger's kernels.
TRL_ON_AN_H100 = [
    ("4 bit and nothing else, padded", "QLoRA", "PyTorch", 8, 1024, "Full", 8.5),
    ("NF4, double quantization, bf16, all linear", "QLoRA", "PyTorch", 8, 1024, "Full", 8.2),
    ("packed, sdpa with a mask", "QLoRA", "PyTorch", 4, 2048, "Full", 8.3),
    ("packed, varlen", "QLoRA", "PyTorch", 4, 2048, "Full", 8.2),
    ("Liger", "QLoRA", "Liger", 8, 2048, "Full", 11.3),
    ("no checkpointing, 2", "QLoRA", "Liger", 2, 2048, "Off", 23.1),
    ("no checkpointing, 4", "QLoRA", "Liger", 4, 2048, "Off", 41.7),
    ("no checkpointing, 6", "QLoRA", "Liger", 6, 2048, "Off", 60.4),
    ("bf16 base", "LoRA", "Liger", 8, 2048, "Full", 22.5),
    ("bf16 base, no checkpointing", "LoRA", "Liger", 4, 2048, "Off", 60.1),
]


@pytest.mark.parametrize(("name", "method", "code", "rows", "length", "checkpointing", "measured_gib"), TRL_ON_AN_H100)
def test_peaks_of_trl_measured_on_an_h100(
    name: str, method: str, code: Any, rows: int, length: int, checkpointing: Recomputing, measured_gib: float
) -> None:
    """All within 5 %. That torch's attention repeated keys and values for each head, which ours does not."""
    terms = estimate(MISTRAL, training(method=method), Setting(rows, checkpointing), length, on_gpu=True, code=code)
    repeated = 2 * 2 * rows * length * (MISTRAL.query - MISTRAL.key_value) * (MISTRAL.layers if checkpointing == "Off" else 1)
    allocated = sum(terms.values()) - terms["fixed"] - terms["fragmentation"] + repeated
    assert allocated / GIB == pytest.approx(measured_gib, rel=0.05), (name, terms)


@pytest.mark.parametrize(
    ("rows", "checkpointing", "measured_gib"),
    [(8, "Off", 61.88), (2, "Off", 19.71), (1, "Off", 12.86), (4, "Full", 9.24), (1, "Full", 6.53)],
)
def test_peaks_of_the_trainer_measured_on_an_h100(rows: int, checkpointing: Recomputing, measured_gib: float) -> None:
    """QLoRA on packed rows of 2048: what the card reports as used, CUDA's context included (benchmarks/h100.md)."""
    terms = estimate(MISTRAL, training(), Setting(rows, checkpointing), 2048, on_gpu=True)  # before layers were recorded
    assert sum(terms.values()) / GIB == pytest.approx(measured_gib, rel=0.04)


@pytest.mark.parametrize(("rows", "measured_gib"), [(8, 61.14), (2, 20.22), (1, 13.39)])
def test_peaks_with_recorded_layers_measured_on_an_h200(rows: int, measured_gib: float) -> None:
    """The same, where micro-batches of one and two rows have their layers recorded (benchmarks/h100.md)."""
    given = training(packing=True, globalBatchSize=8)
    terms = estimate(MISTRAL, given, Setting(rows, "Off"), 2048, on_gpu=True)
    assert ("recorded" in terms) == (rows < 8)
    assert sum(terms.values()) / GIB == pytest.approx(measured_gib, rel=0.025), terms


@pytest.mark.parametrize(
    ("rows", "length", "measured_gib"), [(8, 2048, 62.34), (2, 2048, 20.73), (2, 8192, 62.40)], ids=["eight", "two", "long"]
)
def test_peaks_with_products_in_fp8_measured_on_an_h200(rows: int, length: int, measured_gib: float) -> None:
    given = training(packing=True, globalBatchSize=8, maxLength=length, quantization={"products": "FP8"})
    terms = estimate(MISTRAL, given, Setting(rows, "Off"), length, on_gpu=True)
    assert sum(terms.values()) / GIB == pytest.approx(measured_gib, rel=0.01), terms


@pytest.mark.parametrize(("rows", "kept", "measured_gib"), [(8, 0, 33.83), (1, 0, 9.75), (1, 15, 11.42)])
def test_peaks_of_layers_that_are_recorded_and_make_products_again(rows: int, kept: int, measured_gib: float) -> None:
    """On an H200, rows of 2,048; the eight are not recorded (benchmarks/h100.md)."""
    setting = Setting(rows, "Selective", kept_layers=kept)
    terms = estimate(MISTRAL, training(packing=True, globalBatchSize=8), setting, 2048, on_gpu=True)
    assert ("recorded" in terms) == (rows == 1)
    assert sum(terms.values()) / GIB == pytest.approx(measured_gib, rel=0.015), terms


@pytest.mark.parametrize("mode", ["Off", "Selective"])
def test_layers_with_adapters_in_part_are_not_estimated_as_fused(mode: Recomputing) -> None:
    """What PEFT computes keeps more, and Selective checkpointing keeps its products."""
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    whole, named, part = (
        sum(estimate(MISTRAL, training(lora={"targets": targets}), Setting(2, mode), 2048, on_gpu=True).values())
        for targets in (["all-linear"], every, every[:2])
    )
    assert whole == named < part


def test_a_validation_has_layers_of_its_own_beside_recorded_ones() -> None:
    given, validated = (training(packing=True, **more) for more in ({}, {"evaluateEverySteps": 10}))
    plain, beside = (estimate(MISTRAL, asked, Setting(1, "Off"), 2048, on_gpu=True) for asked in (given, validated))
    assert plain["lossHead"] < plain["backward"] == beside["lossHead"]


@pytest.mark.parametrize(
    ("fields", "setting", "recorded"),
    [
        ({}, Setting(1, "Off"), True),
        ({}, Setting(3, "Off"), True),
        ({}, Setting(4, "Off"), False),  # the GPU has enough to do
        ({"maxLength": 8192}, Setting(1, "Off"), False),
        ({}, Setting(1, "Full"), False),
        ({"packing": False}, Setting(1, "Off"), False),  # lines of any length
        ({"method": "LoRA"}, Setting(1, "Off"), False),
        ({"lora": {"dropout": 0.1}}, Setting(1, "Off"), False),  # not on the fused path
        ({"neftuneNoiseAlpha": 5}, Setting(1, "Off"), False),  # of which there is more on a longer line
        ({"objective": "Distillation"}, Setting(1, "Off"), False),
        ({}, Setting(1, "Off", Strategy.DDP, 2), False),
    ],
)
def test_layers_are_recorded_for_few_tokens_of_packed_rows(fields: dict[str, Any], setting: Setting, recorded: bool) -> None:
    assert records_layers(training(**{"packing": True} | fields), setting, on_gpu=True) == recorded
    assert not records_layers(training(**{"packing": True} | fields), setting, on_gpu=False)


@pytest.mark.parametrize(("rows", "measured_gib"), [(2, 21.4), (6, 51.8), (8, 67.2)])
def test_peaks_measured_on_an_h100_on_the_fused_path(rows: int, measured_gib: float) -> None:
    """Mistral's shape, QLoRA r16, rows of 2048; torch 2.11's varlen attention repeats keys and values for each head."""
    repeated = 2 * MISTRAL.layers * 2 * rows * 2048 * (MISTRAL.query - MISTRAL.key_value)
    terms = estimate(MISTRAL, training(), Setting(rows, "Off"), 2048, on_gpu=True)
    assert (sum(terms.values()) + repeated) / GIB == pytest.approx(measured_gib, rel=0.03)


def copies(shape: Shape, tokens: int) -> float:
    """GiB of the copies of hidden states in 16 bits that layers with whole weights made when these figures were measured: one
    for each product that reads them, three more than there are now (speed/casts.py; measured once: 50.62, then 47.62)."""
    return shape.layers * 3 * 2 * shape.hidden * tokens / GIB


def test_each_product_copies_what_it_reads_where_nothing_makes_one_copy_for_all() -> None:
    """Layers are as they come on CPUs and under ZeRO's stage 3."""
    full, kept = training(method="Full", precision="BF16"), 4 * MISTRAL.feed_forward + 2 * MISTRAL.key_value
    for ranks, on_gpu in ((Setting(1, "Off"), False), (Setting(1, "Off", Strategy.ZERO3, 2), True)):
        terms = estimate(MISTRAL, full, ranks, 64, on_gpu)
        assert terms["activations"] == MISTRAL.layers * 2 * 64 * (kept + (8 + 5) * MISTRAL.hidden)


# 8 rows or pairs on one H100, what the card reports as used. The longest micro-batch of those that are not packed had 6920
# tokens where adapters were trained, 14,240 with both answers of DPO, and 7040 with checkpointing.
OFF_THE_FUSED_PATH = [
    ({"method": "LoRA", "lora": {"dropout": 0.05}}, 1024, 14.66),
    ({"lora": {"dropout": 0.05}}, 1024, 13.59),
    ({"method": "LoRA", "lora": {"dropout": 0.05}}, 865, 12.81),
    ({"method": "LoRA", "lora": {"dora": True}}, 1024, 22.05),
    ({"method": "LoRA", "lora": {"dora": True}}, 865, 19.22),
    ({"lora": {"dora": True}}, 1024, 18.79),
    ({"method": "LoRA", "lora": {"dora": True, "dropout": 0.05}}, 1024, 25.61),
    ({"lora": {"dora": True, "dropout": 0.05}}, 1024, 24.47),
    ({"method": "Full"}, 1024, 21.36 - copies(LLAMA_1B, 6920)),
    ({"method": "Full", "objective": "DPO"}, 890, 33.48 - copies(LLAMA_1B, 14240)),
    ({"method": "Full", "gradientCheckpointing": "Full"}, 880, 11.84),
]


@pytest.mark.parametrize(("fields", "row_tokens", "measured_gib"), OFF_THE_FUSED_PATH)
def test_peaks_off_the_fused_path_measured_on_an_h100(fields: dict[str, Any], row_tokens: int, measured_gib: float) -> None:
    setting = Setting(8, fields.get("gradientCheckpointing", "Off"))
    terms = estimate(LLAMA_1B, training(**fields), setting, row_tokens, on_gpu=True)
    assert sum(terms.values()) / GIB == pytest.approx(measured_gib, rel=0.06), terms


def test_one_micro_batch_a_step_has_no_gradients_beside_its_activations() -> None:
    """Eight layers of Mistral's shape, all weights trained by eight rows of 2048 on an H100; they were taken for 47.56."""
    shape, eight = layers(8, 2_007_044_096), Setting(8, "Off")
    terms = estimate(shape, training(method="Full", globalBatchSize=8, packing=True), eight, 2048, on_gpu=True)
    assert sum(terms.values()) / GIB == pytest.approx(40.18 - copies(shape, 8 * 2048), rel=0.02), terms
    fused = estimate(
        shape, training(method="Full", globalBatchSize=8, packing=True, optimizer="adamw_torch_fused"), eight, 2048, True
    )
    assert sum(fused.values()) / GIB == pytest.approx(47.62, rel=0.01), fused  # on an H200
    beside = estimate(shape, training(method="Full", globalBatchSize=16, packing=True), eight, 2048, on_gpu=True)
    assert beside["gradients"] == 4 * shape.parameters
    few = estimate(shape, training(method="Full", globalBatchSize=1), Setting(1, "Full"), 128, on_gpu=True)
    assert 0 < beside["gradients"] - few["gradients"] <= few["activations"]  # they come as the activations go
    for setting in (Setting(8, "Off", Strategy.DDP, 2), Setting(8, "Off", Strategy.FSDP, 2)):
        ranks = estimate(shape, training(method="Full", globalBatchSize=8), setting, 2048, on_gpu=True)
        assert ranks["gradients"] > 0  # in buckets, which are there from the beginning


def test_many_rows_share_what_a_micro_step_costs_on_a_gpu() -> None:
    def chosen(method: str, available_gib: int, *, on_gpu: bool = True) -> tuple[int, Recomputing]:
        asked = training(method=method, globalBatchSize=8)
        facts = fit(layers(8, 2_007_044_096), asked, 2048, available_gib * GIB, on_gpu=on_gpu)
        return facts.micro_batch_size, facts.gradient_checkpointing

    assert chosen("Full", 78) == (8, "Off")  # 39,726 tokens a second, and with two rows 32,961
    assert chosen("LoRA", 78) == (8, "Off")
    assert chosen("LoRA", 400, on_gpu=False) == (2, "Off")  # on CPUs there is little to share


DROPOUT = {"method": "LoRA", "lora": {"dropout": 0.05}}
# Eight layers of Mistral's shape on one H100, micro-batches of four rows (benchmarks/h100.py recompute).
RECOMPUTED = [
    ({"method": "Full"}, 2048, "Off", 36.62 - copies(MISTRAL, 4 * 2048) / 4),  # eight of 32 layers
    ({"method": "Full"}, 2048, "Selective", 32.36),
    ({"method": "Full"}, 2048, "Full", 26.71),
    ({"method": "Full"}, 8192, "Off", 70.91 - copies(MISTRAL, 4 * 8192) / 4),
    ({"method": "Full"}, 8192, "Selective", 54.82),
    ({"method": "Full"}, 8192, "Full", 33.31),
    (DROPOUT, 2048, "Off", 18.86),
    (DROPOUT, 2048, "Selective", 13.51),
    (DROPOUT, 2048, "Full", 8.26),
    (DROPOUT, 8192, "Off", 61.33),
    (DROPOUT, 8192, "Selective", 39.96),
    (DROPOUT, 8192, "Full", 18.89),
    ({"lora": {"dora": True}}, 2048, "Off", 23.18),
    ({"lora": {"dora": True}}, 2048, "Selective", 12.56),
    ({"lora": {"dora": True}}, 2048, "Full", 7.03),
    ({"lora": {"dora": True}}, 8192, "Selective", 41.38),
    ({"lora": {"dora": True}}, 8192, "Full", 20.82),
]


@pytest.mark.parametrize(("fields", "length", "recomputed", "measured_gib"), RECOMPUTED)
def test_peaks_of_each_checkpointing_measured_on_an_h100(
    fields: dict[str, Any], length: int, recomputed: Recomputing, measured_gib: float
) -> None:
    terms = estimate(layers(8, 2_007_044_096), training(**fields), Setting(4, recomputed), length, on_gpu=True)
    assert sum(terms.values()) / GIB == pytest.approx(measured_gib, rel=0.06), terms


@pytest.mark.parametrize(
    ("fields", "available_gib", "ranks", "expected"),
    [
        ({"method": "LoRA", "lora": {"dropout": 0.05}}, 32, Ranks(), "Off"),
        ({"method": "LoRA", "lora": {"dropout": 0.05}}, 24, Ranks(), "Selective"),
        ({"method": "LoRA", "lora": {"dropout": 0.05}}, 20, Ranks(), "Full"),
        ({"gradientCheckpointing": "Selective"}, 24, Ranks(), "Selective"),
        ({"gradientCheckpointing": "Selective", "quantization": {"bits": 8}}, 32, Ranks(), "Off"),  # they keep no more
        ({"gradientCheckpointing": "Selective", "lora": {"dora": True}}, 24, Ranks(), "Selective"),
        ({"method": "LoRA"}, 18, Ranks(Strategy.ZERO3, 2), "Full"),
        ({"method": "LoRA"}, 18, Ranks(Strategy.FSDP, 2), "Off"),
        ({"method": "LoRA", "lora": {"dropout": 0.05}}, 18, Ranks(Strategy.FSDP, 2), "Selective"),
    ],
)
def test_products_are_kept_where_that_fits(fields: dict[str, Any], available_gib: int, ranks: Ranks, expected: str) -> None:
    asked = training(microBatchSize=1, **fields)
    assert fit(MISTRAL, asked, 2048, available_gib * GIB, on_gpu=True, ranks=ranks).gradient_checkpointing == expected


@pytest.mark.parametrize(("tokens", "kept", "measured"), [(32768, 0, 63.15), (32768, 7, 72.81)])
def test_peaks_where_mlps_make_their_inner_products_again_measured_on_an_h200(tokens: int, kept: int, measured: float) -> None:
    setting = Setting(1, "Selective", kept_layers=kept)
    given = training(packing=True, maxLength=tokens, globalBatchSize=2)
    assert sum(estimate(MISTRAL, given, setting, tokens, on_gpu=True).values()) / GIB == pytest.approx(measured, rel=0.03)


def test_layers_keep_what_there_is_room_for() -> None:
    long = {"packing": True, "maxLength": 32768, "globalBatchSize": 2}
    facts = fit(MISTRAL, training(**long), 32768, 78 * GIB, on_gpu=True)
    assert (facts.gradient_checkpointing, facts.kept_layers) == ("Selective", 7)
    assert 0.94 * 78 < facts.predicted_bytes / GIB <= 0.97 * 78
    assert facts.predicted_bytes == sum(facts.terms.values())
    asked = fit(MISTRAL, training(gradientCheckpointing="Selective", **long), 32768, 78 * GIB, on_gpu=True)
    assert (asked.gradient_checkpointing, asked.kept_layers) == ("Selective", None)
    assert fit(MISTRAL, training(**long), 32768, 64 * GIB, on_gpu=True).kept_layers is None
    some = {"packing": True, "maxLength": 8192, "globalBatchSize": 2}
    told, assumed = (fit(MISTRAL, training(**some), 8192, memory, on_gpu=True) for memory in (24 * GIB, None))
    assert (told.gradient_checkpointing, assumed.gradient_checkpointing) == ("Selective", "Selective")
    assert (told.kept_layers, assumed.kept_layers) == (7, None)
    assert fit(MISTRAL, training(**long), 32768, 150 * GIB, on_gpu=True).gradient_checkpointing == "Off"


def test_a_layer_that_keeps_more_may_take_no_more() -> None:
    """Gradients of a head that is trained whole come as activations go, and hide those while they are more."""
    shape = Shape(32, 2048, 8192, 32, 512, 2048, 256000, tied=False, parameters=3_196_059_648)
    asked = training(globalBatchSize=2, maxLength=4096, lora={"modulesToSave": ["lm_head"]})
    facts = fit(shape, asked, 1024, 15 * GIB, on_gpu=True)
    assert (facts.gradient_checkpointing, facts.kept_layers) == ("Selective", 9)


def test_reports_of_before_there_was_selective_are_understood() -> None:
    old = {"predictedBytes": 1, "microBatchSize": 1}
    assert FitFacts.model_validate(old | {"gradientCheckpointing": True}).gradient_checkpointing == "Full"
    assert FitFacts.model_validate(old | {"gradientCheckpointing": False}).gradient_checkpointing == "Off"


def test_masks_on_cpus_count_what_is_compared() -> None:
    def masks(rows: int, packing: bool) -> int:
        """What is saved beyond that of as many rows that are alone."""
        saved = estimate(SMOLLM, training(packing=packing), Setting(rows, "Off"), 512, on_gpu=False)["activations"]
        return saved - rows * estimate(SMOLLM, training(), Setting(1, "Off"), 512, on_gpu=False)["activations"]

    repeated = 2 * (576 - 192)  # keys and values, of each token
    assert masks(2, packing=False) == 30 * 4 * (2 * 512**2 + 1024 * repeated)
    assert masks(2, packing=True) == 30 * 4 * (1024**2 + 1024 * repeated)
    assert fit(SMOLLM, training(packing=True, maxLength=512), 100, None, on_gpu=False).micro_batch_size == 1


def test_divisors() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


def test_what_ranks_share_out_is_divided_and_what_each_computes_is_not() -> None:
    alone = estimate(MISTRAL, training(method="Full"), Setting(1, "Full"), 512, on_gpu=True, code="PyTorch")
    shared = estimate(MISTRAL, training(method="Full"), Setting(1, "Full", Strategy.FSDP, 4), 512, on_gpu=True)
    for term in ("weights", "gradients"):
        assert shared[term] == alone[term] // 4
    assert shared["optimizer"] == 8 * MISTRAL.parameters // 4  # bitsandbytes' 8-bit states can't be shared out
    assert shared["activations"] == alone["activations"]
    assert shared["gathered"] == pytest.approx(2 * alone["weights"] / 32, rel=0.01)


def layers(count: int, parameters: int) -> Shape:
    return shape_of(MISTRAL_CONFIG | {"num_hidden_layers": count}, parameters)


@pytest.mark.parametrize(
    ("fields", "strategy", "rows", "measured"),
    [
        ({}, Strategy.DDP, 2, 7.13),
        ({}, Strategy.DDP, 8, 18.68),
        ({}, Strategy.FSDP, 8, 18.20),
        ({}, Strategy.ZERO2, 2, 7.69),
        ({"method": "LoRA"}, Strategy.ZERO3, 2, 11.11),
        ({"method": "Full"}, Strategy.FSDP, 2, 28.26),
        ({"method": "Full"}, Strategy.FSDP, 8, 41.93),
        ({"method": "Full"}, Strategy.ZERO3, 2, 29.08),
    ],
)
def test_peaks_of_two_ranks_measured(fields: dict[str, Any], strategy: Strategy, rows: int, measured: float) -> None:
    """Eight layers of Mistral's shape, rows packed to 2048 tokens, on H200s, with ZeRO on H100s (benchmarks/many_gpus.py)."""
    asked = training(packing=True, globalBatchSize=32, **fields)
    found = estimate(layers(8, 2_007_044_096), asked, Setting(rows, "Off", strategy, 2), 2048, on_gpu=True)
    assert sum(found.values()) / GIB == pytest.approx(measured, rel=0.05)


def test_zero_shares_out_state_and_in_stage_3_weights() -> None:
    def terms(strategy: Strategy) -> dict[str, int]:
        return estimate(MISTRAL, training(method="Full"), Setting(1, "Full", strategy, 4), 512, on_gpu=True)

    two, three = terms(Strategy.ZERO2), terms(Strategy.ZERO3)
    assert two["weights"] == 2 * MISTRAL.parameters
    assert three["weights"] == two["weights"] // 4
    for found in (two, three):
        assert found["optimizer"] == 12 * MISTRAL.parameters // 4
        assert found["gradients"] == 6 * MISTRAL.parameters // 4


def test_a_model_too_large_for_one_gpu_fits_several() -> None:
    with pytest.raises(DoesNotFit):
        fit(MISTRAL, training(method="Full"), 512, 80 * GIB, on_gpu=True)
    assert (
        fit(MISTRAL, training(method="Full"), 512, 80 * GIB, on_gpu=True, ranks=Ranks(Strategy.FSDP, 8)).predicted_bytes
        < 80 * GIB
    )


def test_pairs_count_both_answers_and_full_training_its_reference() -> None:
    def terms(**fields: Any) -> dict[str, int]:
        return estimate(MISTRAL, training(**fields), Setting(2, "Off"), 512, on_gpu=True)

    for objective in ("DPO", "ORPO", "KTO"):
        sft = estimate(MISTRAL, training(method="LoRA"), Setting(4, "Off"), 512, on_gpu=True)
        assert terms(method="LoRA", objective=objective) == sft, "adapters that are switched off need no copy"
    assert "reference" not in terms(method="Full") | terms(method="Full", objective="ORPO")
    assert terms(method="Full", objective="DPO")["reference"] == 4 * MISTRAL.parameters


def test_kto_gets_two_rows_at_least() -> None:
    found = fit(SMOLLM, training(method="LoRA", objective="KTO", precision="FP32"), 2048, 12 * GIB, on_gpu=False)
    assert found.micro_batch_size >= 2


def test_a_teacher_is_read_as_the_base_is() -> None:
    assert frozen_bytes(MISTRAL, training(), on_gpu=True) / GIB == pytest.approx(3.35 + 0.5, rel=0.02)
    assert frozen_bytes(MISTRAL, training(method="Full"), on_gpu=True) == 2 * MISTRAL.parameters
    assert frozen_bytes(SMOLLM, training(method="LoRA"), on_gpu=False) == 4 * SMOLLM.parameters


def test_modules_trained_whole_count_in_float32_and_a_tied_embedding_once() -> None:
    def terms(shape: Shape, *names: str, on_gpu: bool = True) -> dict[str, int]:
        fields = training(lora={"modulesToSave": list(names)})
        return estimate(shape, fields, Setting(1, "Off"), 512, on_gpu=on_gpu)

    plain, embedding = terms(MISTRAL), 4 * 32000 * 4096
    both = terms(MISTRAL, "model.embed_tokens", "lm_head")
    more = {name: both[name] - plain[name] for name in both}
    assert more["weights"] == more["activations"] == 0
    assert (more["trainedModules"], more["gradients"], more["optimizer"]) == (2 * embedding, 2 * embedding, 4 * embedding)
    head, embedded = terms(MISTRAL, "lm_head"), terms(MISTRAL, "embed_tokens")
    assert head["trainedModules"] == embedded["trainedModules"] == embedding
    assert head["lossHead"] - embedded["lossHead"] > 0.5 * embedding, "its gradient is there while all is saved"

    tied = terms(SMOLLM, "embed_tokens")
    assert tied == terms(SMOLLM, "lm_head") == terms(SMOLLM, "embed_tokens", "lm_head")
    assert tied["trainedModules"] == tied["headGradient"] == 4 * 49152 * 576
    assert terms(SMOLLM)["trainedModules"] == terms(SMOLLM)["headGradient"] == terms(SMOLLM)["lastGradient"] == 0
    assert terms(SMOLLM, "norm")["trainedModules"] < 1e6


def test_a_large_embedding_and_short_rows_peak_at_the_end_of_the_step() -> None:
    short = training(method="LoRA", lora={"modulesToSave": ["embed_tokens"]})
    terms = estimate(SMOLLM, short, Setting(1, "Off"), 8, on_gpu=True)
    stepwise = sum(terms[name] for name in ("activations", "backward", "lossHead", "headGradient", "lastGradient"))
    assert stepwise == 8 * 49152 * 576
