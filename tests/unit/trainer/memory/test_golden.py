"""The estimate's terms for one setting of each kind, as a file to be read in review.

The measured figures in test_memory.py leave some room; within it, too, a term should change only where that is meant.

tests/golden/memory/estimates.yaml      (pytest --golden-update writes it)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.training import Training
from finetune_trainer.memory.choice import DoesNotFit, Ranks, fit
from finetune_trainer.memory.estimate import estimate
from finetune_trainer.memory.setting import Setting
from finetune_trainer.memory.shape import Shape, shape_of

GOLDEN = Path(__file__).parents[3] / "golden" / "memory" / "estimates.yaml"
GIB = 1 << 30
CONFIG = {"num_hidden_layers": 4, "hidden_size": 1000, "num_attention_heads": 10, "vocab_size": 50000}
WIDE = {"intermediate_size": 3000, "num_key_value_heads": 2, "head_dim": 120}
PLAIN, TIED = shape_of(CONFIG, 150_000_000), shape_of(CONFIG | WIDE | {"tie_word_embeddings": True}, 90_000_000)
INNER = shape_of({"text_config": CONFIG | WIDE, "tie_word_embeddings": True}, 90_000_000)
QLORA: dict[str, Any] = {"method": "QLoRA"}
LORA: dict[str, Any] = {"method": "LoRA", "lora": {"rank": 24}}
FULL: dict[str, Any] = {"method": "Full"}
ONE = Setting(3, "Off")

CASES: dict[str, tuple[dict[str, Any], Setting, bool]] = {
    "qlora": (QLORA, ONE, True),
    "qlora, scales not rounded": (QLORA | {"quantization": {"doubleQuantization": False}}, ONE, True),
    "qlora, 8 bits": (QLORA | {"quantization": {"bits": 8}}, ONE, True),
    "qlora, products in FP8": (QLORA | {"quantization": {"products": "FP8"}}, ONE, True),
    "qlora, checkpointed": (QLORA, Setting(3, "Full"), True),
    "qlora, dropout": (QLORA | {"lora": {"dropout": 0.1}}, ONE, True),
    "qlora, dora, selective": (QLORA | {"lora": {"dora": True}}, Setting(3, "Selective"), True),
    "qlora, dora with dropout": (QLORA | {"lora": {"dora": True, "dropout": 0.1}}, ONE, True),
    "qlora, packed, its layers recorded": (QLORA | {"packing": True, "maxLength": 1024}, ONE, True),
    "qlora on cpus": (QLORA, ONE, False),
    "qlora on two ranks": (QLORA, Setting(3, "Off", Strategy.DDP, 2), True),
    "qlora sharded": (QLORA, Setting(3, "Off", Strategy.FSDP, 4), True),
    "qlora, zero2": (QLORA, Setting(3, "Full", Strategy.ZERO2, 4), True),
    "lora": (LORA, ONE, True),
    "lora, fp32": (LORA | {"precision": "FP32"}, ONE, True),
    "lora on cpus": (LORA | {"precision": "FP32"}, ONE, False),
    "lora on cpus, packed and checkpointed": (LORA | {"packing": True, "precision": "FP32"}, Setting(1, "Full"), False),
    "lora on cpus, long rows": (LORA | {"precision": "BF16"}, Setting(32, "Off"), False),
    "lora, zero3": (LORA, Setting(3, "Off", Strategy.ZERO3, 4), True),
    "lora, sharded with dora": (LORA | {"lora": {"dora": True}}, Setting(3, "Off", Strategy.FSDP, 4), True),
    "lora, sharded with dropout": (LORA | {"lora": {"dropout": 0.1}}, Setting(3, "Off", Strategy.FSDP, 4), True),
    "lora, head trained whole": (LORA | {"lora": {"modulesToSave": ["model.lm_head", "norm"]}}, Setting(1, "Full"), True),
    "lora, all trained whole": (LORA | {"lora": {"modulesToSave": ["embed_tokens", "lm_head"]}}, Setting(1, "Full"), False),
    "lora, 8-bit optimizer": (LORA | {"optimizer": "adamw_bnb_8bit"}, ONE, True),
    "dpo": (QLORA | {"objective": "DPO"}, ONE, True),
    "kto": (LORA | {"objective": "KTO"}, ONE, True),
    "dpo, full": (FULL | {"objective": "DPO"}, ONE, True),
    "distillation": (LORA | {"objective": "Distillation"}, ONE, True),
    "full": (FULL, ONE, True),
    "full, 8-bit optimizer": (FULL | {"optimizer": "adamw_bnb_8bit"}, Setting(3, "Off", Strategy.DDP, 2), True),
    "full, 8-bit optimizer on cpus": (FULL | {"optimizer": "adamw_bnb_8bit"}, ONE, False),
    "full, selective": (FULL, Setting(3, "Selective"), True),
    "full on cpus": (FULL | {"precision": "FP32"}, Setting(3, "Full"), False),
    "full, fsdp": (FULL, Setting(3, "Full", Strategy.FSDP, 4), True),
    "full, zero2": (FULL, Setting(3, "Off", Strategy.ZERO2, 4), True),
    "full, zero3": (FULL, Setting(3, "Off", Strategy.ZERO3, 4), True),
}
CHOICES: dict[str, tuple[dict[str, Any], float | None, bool, Ranks]] = {
    "ample": (QLORA | {"globalBatchSize": 24}, 80, True, Ranks()),
    "short": (QLORA | {"globalBatchSize": 24}, 1.9, True, Ranks()),
    "unknown": (QLORA | {"globalBatchSize": 6}, None, True, Ranks()),
    "more rows, recomputed": (FULL | {"globalBatchSize": 24}, 3.4, True, Ranks()),
    "asked for": (QLORA | {"microBatchSize": 2, "gradientCheckpointing": "Full"}, 80, True, Ranks()),
    "packed": (LORA | {"packing": True, "maxLength": 4096, "globalBatchSize": 8}, 3, True, Ranks()),
    "shared out": (FULL | {"globalBatchSize": 8}, 4, True, Ranks(Strategy.FSDP, 4)),
    "zero3": (LORA | {"globalBatchSize": 8}, 3, True, Ranks(Strategy.ZERO3, 4)),
    "pairs": (QLORA | {"objective": "KTO", "globalBatchSize": 8}, 2, True, Ranks()),
    "cpus": (LORA | {"precision": "FP32", "globalBatchSize": 8}, 2.5, False, Ranks()),
    "refused, full": (FULL, 2.5, True, Ranks()),
    "refused, lora": (LORA, 1.4, True, Ranks()),
    "refused, qlora": (QLORA | {"microBatchSize": 8}, 1.6, True, Ranks()),
    "refused, 8 bits": (QLORA | {"quantization": {"bits": 8}}, 1.38, True, Ranks()),
    "refused, whole modules": (LORA | {"lora": {"modulesToSave": ["lm_head"]}}, 1.6, True, Ranks()),
    "refused, whole modules before the method": (LORA | {"lora": {"modulesToSave": ["lm_head"]}}, 2.33, True, Ranks()),
    "refused on cpus": (LORA | {"precision": "FP32"}, 0.5, False, Ranks()),
}


def _chosen(fields: dict[str, Any], gib: float | None, on_gpu: bool, ranks: Ranks) -> dict[str, Any] | str:
    try:
        available = None if gib is None else int(gib * GIB)
        found = fit(PLAIN, Training.model_validate(fields), 700, available, on_gpu, ranks)
        return found.model_dump(mode="json", exclude_none=True)
    except DoesNotFit as refused:
        return str(refused)


def _estimated(shape: Shape, fields: dict[str, Any], setting: Setting, on_gpu: bool) -> dict[str, int]:
    return estimate(shape, Training.model_validate(fields), setting, 700, on_gpu)


def test_estimates_and_choices(golden: Callable[[Path, str], None]) -> None:
    assert INNER == TIED, "a model of several kinds of input has its language model's shape inside"
    found = {
        "plain": {name: _estimated(PLAIN, *case) for name, case in CASES.items()},
        "tied": {name: _estimated(TIED, *case) for name, case in CASES.items()},
        "choices": {name: _chosen(*case) for name, case in CHOICES.items()},
    }
    golden(GOLDEN, yaml.safe_dump(found, sort_keys=False, width=128, default_flow_style=None))
