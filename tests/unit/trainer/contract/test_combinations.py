"""What goes together in training: each row's two forms agree, and what one of those who ask accepts no later one refuses."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import celpy
import pytest
from celpy.adapter import json_to_cel
from tests.builders import DATASET, MODEL

from finetune_operator.api.finetunejob import FineTuneJob, FineTuneJobSpec
from finetune_operator.api.rules import finetunejob
from finetune_operator.finetunejob import admission
from finetune_operator.finetunejob.run_config import devices, run_config
from finetune_trainer.contract.combinations import TABLE, Combination, refusals, strategies
from finetune_trainer.contract.devices import Devices, Strategy
from finetune_trainer.contract.training import Training
from finetune_trainer.failures import StepFailed
from finetune_trainer.memory.fit import check, fit_for

ABSENT = object()
TEACHER = {"teacher": {"uri": "hf://a/teacher"}}
VALUES: dict[str, tuple[Any, ...]] = {
    "training.method": ("QLoRA", "LoRA", "Full"),
    "training.objective": ("SFT", "DPO", "ORPO", "KTO", "Distillation"),
    "training.distillation": (ABSENT, TEACHER),
    "training.preference.desirableWeight": (1, 2),
    "training.preference.undesirableWeight": (1, 2),
    "training.epochs": (ABSENT, 1),
    "training.maxSteps": (ABSENT, 5),
    "training.globalBatchSize": (1, 2, 4, 6),
    "training.microBatchSize": (ABSENT, 1, 2, 3),
    "training.reportTo": (ABSENT, [], ["tensorboard"], ["tensorboard", "wandb"]),
    "training.reportSecretRef": (ABSENT, {"name": "keys"}),
    "training.earlyStopping": (ABSENT, {"patience": 2}),
    "training.evaluateEverySteps": (ABSENT, 5),
    "training.keepCheckpoint": ("Last", "Best"),
    "training.precision": ("Auto", "FP16", "FP32"),
    "training.packing": (False, True),
    "training.neftuneNoiseAlpha": (ABSENT, 5),
    "training.completionOnlyLoss": (False, True),
    "training.gradientCheckpointing": ("Auto", "Full", "Selective", "Off"),
    "training.optimizer": ("Auto", "adamw_torch", "adamw_bnb_8bit", "paged_lion", "adamw_4bit"),
    "training.lora.init": ("Default", "Orthogonal", "PiSSA", "OLoRA"),
    "training.lora.rank": (7, 8),
    "training.lora.dora": (False, True),
    "training.lora.dropout": (0, 0.1),
    "training.lora.targets": (["all-linear"], ["q_proj", "lm_head"]),
    "training.lora.modulesToSave": (ABSENT, [], ["lm_head"]),
    "training.quantization.bits": (4, 8),
    "training.quantization.type": ("NF4", "FP4"),
    "training.quantization.doubleQuantization": (False, True),
    "training.quantization.products": ("Compute", "FP8"),
    "parallelism.numNodes": (1, 2),
    "parallelism.gpusPerNode": (0, 1, 2),
    "parallelism.strategy": tuple(Strategy),
    "parallelism.launcher": ("Torchrun", "Ray"),
}


def spec_of(chosen: dict[str, Any]) -> FineTuneJobSpec:
    body: dict[str, Any] = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}}
    for path, value in chosen.items():
        *folders, field = path.split(".")
        node = body
        for folder in folders:
            node = node.setdefault(folder, {})
        if value is not ABSENT:
            node[field] = value
    return FineTuneJobSpec.model_validate(body)


def product(values: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))


def named(row: Combination) -> dict[str, tuple[Any, ...]]:
    """All values of the fields that the row's CEL reads."""
    at = "training." if row.at == "spec.training" else ""
    read = {at + path for path in re.findall(r"self\.([\w.]+)", row.must)}
    found = {field: values for field, values in VALUES.items() if any(f"{path}.".startswith(f"{field}.") for path in read)}
    assert all(any(f"{path}.".startswith(f"{field}.") for field in found) for path in read), "a field without values here"
    return found


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.sentence[:60])
def test_both_forms_of_a_row_agree_on_all_values(row: Combination) -> None:
    """All values of the fields that it names, with each time others in the fields that should not count."""
    environment, chance = celpy.Environment(), random.Random(0)
    program = environment.program(environment.compile(row.must))
    verdicts = set()
    for chosen in product(named(row)):
        spec = spec_of({field: chance.choice(values) for field, values in VALUES.items()} | chosen)
        body = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        value = body["training"] if row.at == "spec.training" else body
        verdict = row.allows(spec.training, devices(spec))
        assert verdict == bool(program.evaluate({"self": json_to_cel(value)})), chosen
        verdicts.add(verdict)
    assert verdicts == {True, False}, "each row allows something and refuses something"


def test_each_row_is_a_rule_of_the_crd() -> None:
    rules = {(rule.at, rule.must, rule.message) for rule in finetunejob.RULES}
    assert [row.sentence for row in TABLE if (row.at, row.must, row.sentence) not in rules] == []


# ── From the API server to the train pod ──────────────────────────────────────────────────────────────────────────────

WALKED: dict[str, tuple[Any, ...]] = {
    "training.method": ("QLoRA", "LoRA", "Full"),
    "training.objective": ("SFT", "KTO"),
    "training.globalBatchSize": (4,),
    "training.evaluateEverySteps": (5,),
    "training.keepCheckpoint": ("Last", "Best"),
    "training.gradientCheckpointing": ("Auto", "Selective"),
    "training.optimizer": ("Auto", "adamw_bnb_8bit"),
    "training.lora.init": ("Default", "PiSSA"),
    "training.lora.modulesToSave": ([], ["lm_head"]),
    "training.quantization.bits": (4, 8),
    "training.quantization.products": ("Compute", "FP8"),
    "parallelism.numNodes": (2,),
    "parallelism.gpusPerNode": (0, 2),
    "parallelism.strategy": tuple(Strategy),
}
SHAPE = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
MISTRAL = MODEL.model_copy(update={"parameters": 7_241_732_096})
MEMORIES = (12, 40, 400)  # GiB of one rank: too little, enough for some where it is shared out, enough for all


def chosen_strategies(spec: FineTuneJobSpec, folder: Path) -> Iterator[Strategy]:
    """What prepare chooses, with little memory and with much; nothing where it says that training doesn't fit."""
    run = run_config(FineTuneJob.model_validate({"metadata": {"name": "j", "namespace": "n"}, "spec": spec}))
    for memory in MEMORIES:
        sized = run.devices.model_copy(update={"memory_bytes": memory << 30})
        with what_does_not_fit_left_out():
            yield fit_for(run.model_copy(update={"devices": sized}), MISTRAL, DATASET, folder).strategy or sized.strategy


@contextmanager
def what_does_not_fit_left_out() -> Iterator[None]:
    try:
        yield
    except StepFailed as failure:
        if failure.reason != "DoesNotFit":
            raise


def test_what_one_accepts_no_later_one_refuses(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    chosen = set()
    for values in product(WALKED):
        spec = spec_of(values)
        asked = devices(spec)
        accepted = all(row.allows(spec.training, asked) for row in TABLE)  # by the API server, as each row's forms agree
        assert (admission.problems(spec) == []) == accepted, values
        if not accepted:
            continue
        check(spec.training, asked)  # prepare, before it fetches anything
        for strategy in chosen_strategies(spec, tmp_path):
            check(spec.training, asked.model_copy(update={"strategy": strategy}))  # train, with what prepare chose
            chosen.add((asked.strategy, strategy))
    assert {(Strategy.AUTO, Strategy.DDP), (Strategy.AUTO, Strategy.FSDP)} <= chosen


def test_auto_tries_what_is_allowed_and_the_faster_first() -> None:
    two = Devices(gpus=2)
    assert strategies(Training(), two) == (Strategy.DDP, Strategy.FSDP)
    assert strategies(Training(optimizer="adamw_bnb_8bit"), two) == (Strategy.DDP,)
    assert strategies(Training(), Devices(gpus=1)) == (Strategy.AUTO,)


def test_auto_is_refused_where_nothing_that_it_may_choose_is_allowed() -> None:
    odd = Training(global_batch_size=3)
    assert strategies(odd, Devices(gpus=2)) == ()
    assert [sentence[:35] for sentence in refusals(odd, Devices(gpus=2))] == ["spec.training.globalBatchSize must "]
