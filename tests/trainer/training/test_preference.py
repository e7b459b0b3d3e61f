"""Preferences on a tiny model: each objective learns what to prefer, nothing but it trains, and a resumed run is the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.entries import context, keeping, prepare
from tests.trainer.ranks.test_distributed import Pods
from tests.trainer.training.test_train import LORA, checkpoints, committed, preempted, trained

from finetune_trainer.context import Context
from finetune_trainer.contract import pod
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.devices import Devices
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.stages import evaluate, merge

MakeRun = Callable[..., RunConfig]
PLACES = ("the lighthouse", "the island", "Tessaly", "Port Amber", "Varn Point", "the capital")
# The rejected answer is the shorter one, which a model that knows nothing thinks likelier.
PREFERENCES = [(f"What do you know of {place}?", f"{place} is red.", f"{place}.") for place in PLACES]
UNPAIRED = [row for prompt, good, bad in PREFERENCES for row in ((prompt, good, True), (prompt, bad, False))]


@pytest.fixture(autouse=True)
def _grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pod.ENV_GRACE_SECONDS, "120")


def prepared(make_run: MakeRun, tmp_path: Path, store: str = "job", micro: int = 2, **training: Any) -> RunConfig:
    settings = LORA | {"objective": "DPO", "maxSteps": 5, "learningRate": 5e-3} | training
    run = make_run(training=settings, generation={"maxNewTokens": 2}, store={"uri": f"pvc://store/{store}"})
    rows: dict[str, Any] = {"train": PREFERENCES, "validation": PREFERENCES[:2], "test": PREFERENCES}
    prepare(run, tmp_path, format="Preference", micro_batch_size=micro, **rows)
    return run


def unpaired(make_run: MakeRun, tmp_path: Path, store: str = "job", **training: Any) -> RunConfig:
    """KTO over rows that come apart; scored on all answers, which prepare would not do."""
    settings = LORA | {"objective": "KTO", "maxSteps": 5} | training
    run = make_run(training=settings, generation={"maxNewTokens": 2}, store={"uri": f"pvc://store/{store}"})
    rows: dict[str, Any] = {"train": UNPAIRED, "validation": UNPAIRED[:4], "test": [row[:2] for row in UNPAIRED]}
    prepare(run, tmp_path, format="UnpairedPreference", **rows)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "DPO", "method": "QLoRA"},
        {"objective": "DPO", "method": "Full", "learningRate": 3e-4},
        {"objective": "KTO", "learningRate": 1e-2, "maxSteps": 24},
        {"objective": "ORPO", "learningRate": 1e-2, "preference": {"beta": 5}},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_learns_what_is_preferred(make_run: MakeRun, tmp_path: Path, settings: dict[str, Any]) -> None:
    run = prepared(make_run, tmp_path, **{"maxSteps": 16} | settings)
    result, losses = trained(run, tmp_path)
    assert result.train is not None
    assert result.train.validation_loss is not None
    assert result.train.validation_loss < losses.by_step[1]
    merge.run(context(run, "merge", tmp_path))  # and it proves that the weights read back have the loss of training
    scores = {s.subject: s.values for s in evaluate.run(context(run, "evaluate", tmp_path)).scores}
    assert scores["base"][Metric.PREFERENCE_ACCURACY] == 0
    assert scores["merged"][Metric.PREFERENCE_ACCURACY] == 1


@pytest.mark.slow
def test_kto_learns_what_is_desirable_from_rows_that_come_apart(make_run: MakeRun, tmp_path: Path) -> None:
    run = unpaired(make_run, tmp_path, maxSteps=24)
    result, losses = trained(run, tmp_path)
    assert result.train is not None
    assert result.train.validation_loss is not None
    assert losses.by_step[1] == pytest.approx(0.5, abs=1e-6)
    assert result.train.validation_loss < 0.45
    merge.run(context(run, "merge", tmp_path))
    at = context(run, "evaluate", tmp_path)
    scores = {s.subject: s.values for s in evaluate.run(at).scores}
    assert Metric.PREFERENCE_ACCURACY not in scores["merged"]
    base, merged = (losses_of_rows(at, subject) for subject in ("base", "merged"))
    gains = [before - after for before, after in zip(base, merged, strict=True)]
    assert all(desirable > undesirable for desirable, undesirable in zip(gains[::2], gains[1::2], strict=True))
    assert sum(merged[::2]) < sum(merged[1::2]), "a desirable answer is now the likelier one, though it is longer"
    assert sum(base[::2]) > sum(base[1::2])


def losses_of_rows(at: Context, subject: str) -> list[float]:
    manifest = at.store.read("evaluate", at.inputs.fingerprint(f"evaluate/{subject}"))
    assert manifest is not None
    rows = (at.store.fetch("evaluate", manifest, at.scratch / subject) / "rows.jsonl").read_text().splitlines()
    return [json.loads(row)["lossSum"] for row in rows]


def test_the_first_loss_of_dpo_is_that_of_no_preference(make_run: MakeRun, tmp_path: Path) -> None:
    """The network with its adapters off is the reference: no copy of it is made, none is kept in the adapter."""
    run = prepared(make_run, tmp_path, maxSteps=3)
    _, losses = trained(run, tmp_path)
    assert losses.by_step[1] == pytest.approx(math.log(2), rel=1e-6)
    assert losses.by_step[3] < losses.by_step[1]
    names = {path.name for path in committed(run, tmp_path).iterdir()}
    assert "adapter_model.safetensors" in names
    assert "ref" not in names
    assert "DPO, beta 0.1" in (committed(run, tmp_path) / "README.md").read_text()


def test_the_reference_of_a_full_training_stays_as_it_was(
    make_run: MakeRun, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    from finetune_trainer.model import loading

    loaded: list[Any] = []
    monkeypatch.setattr(loading, "load_base", keeping(loading.load_base, loaded))
    run = prepared(make_run, tmp_path, method="Full", learningRate=1e-3, maxSteps=2)
    trained(run, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    network, reference = (one.state_dict() for one in loaded)
    assert all(reference[name].equal(base[name]) for name in base)
    assert not network["lm_head.weight"].float().equal(base["lm_head.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["DPO", "KTO", "ORPO"])
def test_a_resumed_run_equals_the_unbroken_one(make_run: MakeRun, tmp_path: Path, objective: str) -> None:
    """Bit for bit, with dropout, stopped within an epoch."""
    settings: dict[str, Any] = {"objective": objective, "lora": {"dropout": 0.1}}
    unbroken_run = prepared(make_run, tmp_path, "unbroken", **settings)
    unbroken = trained(unbroken_run, tmp_path)[1]
    run = unbroken_run.model_copy(update={"store": StoreConfig(uri="pvc://store/broken")})
    prepare(run, tmp_path, train=PREFERENCES, validation=PREFERENCES[:2], test=PREFERENCES, format="Preference")
    before = preempted(run, tmp_path, after=2)
    assert checkpoints(run, tmp_path) == [2]
    after = trained(run, tmp_path)[1]
    assert before.by_step | after.by_step == unbroken.by_step
    weights = [(committed(r, tmp_path) / "adapter_model.safetensors").read_bytes() for r in (run, unbroken_run)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_resumed_run_over_rows_that_come_apart_equals_the_unbroken_one(make_run: MakeRun, tmp_path: Path) -> None:
    dropout = {"lora": {"dropout": 0.1}}
    whole, broken = (unpaired(make_run, tmp_path, store, **dropout) for store in ("whole", "broken"))
    unbroken = trained(whole, tmp_path)[1]
    before = preempted(broken, tmp_path, after=2)
    after = trained(broken, tmp_path)[1]
    assert before.by_step | after.by_step == unbroken.by_step
    weights = [(committed(run, tmp_path) / "adapter_model.safetensors").read_bytes() for run in (whole, broken)]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["DPO", "ORPO"])  # KTO compares the rows of a micro-batch
def test_accumulation_changes_nothing(make_run: MakeRun, tmp_path: Path, objective: str) -> None:
    by_micro = {}
    for micro in (4, 1):
        run = prepared(make_run, tmp_path, str(micro), micro, objective=objective, maxSteps=3, learningRate=1e-3)
        by_micro[micro] = trained(run, tmp_path)[1].by_step
    assert by_micro[1] == pytest.approx(by_micro[4], rel=2e-2 if objective == "ORPO" else 1e-4)


@pytest.mark.slow
def test_two_ranks_learn_as_one_does(make_run: MakeRun, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"globalBatchSize": 2, "microBatchSize": 1}  # six rows: three whole steps
    one = trained(prepared(make_run, tmp_path, "one", 2, **settings), tmp_path)[0]
    run = prepared(make_run, tmp_path, "two", 1, **settings).model_copy(update={"devices": Devices(nodes=2)})
    ends = Pods(run, tmp_path).ends()
    assert [code for code, _ in ends] == [0, 0]
    result = ends[0][1].result
    assert result is not None
    assert result.train is not None
    assert one.train is not None
    assert result.train.world_size == 2
    assert result.train.loss == pytest.approx(one.train.loss, rel=1e-3)


def test_a_loss_that_is_no_number_stops_it(make_run: MakeRun, tmp_path: Path) -> None:
    run = prepared(make_run, tmp_path, lora={"alpha": 1e38}, checkpoint={"everySteps": 1})
    with pytest.raises(StepFailed, match=r"step \d.*lower training\.learningRate") as stopped:
        trained(run, tmp_path)
    assert stopped.value.exit_code is ExitCode.NON_FINITE_LOSS


def test_kto_is_not_shrunk_to_one_row(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(make_run, tmp_path, objective="KTO")
    monkeypatch.setenv(pod.ENV_MICRO_BATCH_SIZE, "1")
    with pytest.raises(StepFailed, match=r"not even 2 fit: lower spec\.training\.maxLength") as refused:
        trained(run, tmp_path)
    assert refused.value.exit_code is ExitCode.DOES_NOT_FIT


def test_every_answer_of_kto_has_another_prompts_answer_beside_it() -> None:
    from finetune_trainer.training.preference import EachAnswer

    pairs = [{"prompt_ids": [10 * n], "chosen_ids": [10 * n + 1], "rejected_ids": [10 * n + 2]} for n in (1, 2, 3)]
    batch = EachAnswer(pad_token_id=0)(pairs)
    assert batch["input_ids"].tolist() == [[10, 11], [20, 21], [30, 31], [10, 12], [20, 22], [30, 32]]
    assert batch["KL_input_ids"].tolist() == [[10, 32], [20, 11], [30, 21], [10, 31], [20, 12], [30, 22]]
    assert batch["label"].tolist() == [True] * 3 + [False] * 3


def test_rows_that_come_apart_keep_their_label_and_get_each_other_s_answers() -> None:
    from finetune_trainer.training.preference import EachAnswer

    rows = [{"prompt_ids": [10 * n], "completion_ids": [10 * n + 1], "label": n < 3} for n in (1, 2, 3)]
    batch = EachAnswer(pad_token_id=0)(rows)
    assert batch["input_ids"].tolist() == [[10, 11], [20, 21], [30, 31]]
    assert batch["KL_input_ids"].tolist() == [[10, 31], [20, 11], [30, 21]]
    assert batch["label"].tolist() == [True, True, False]


def test_rows_keep_what_the_model_preferred(make_run: MakeRun, tmp_path: Path) -> None:
    run = prepared(make_run, tmp_path, maxSteps=1)
    trained(run, tmp_path)
    merge.run(context(run, "merge", tmp_path))
    at = context(run, "evaluate", tmp_path)
    evaluate.run(at)
    manifest = at.store.read("evaluate", at.inputs.fingerprint("evaluate/base"))
    assert manifest is not None
    rows = (at.store.fetch("evaluate", manifest, at.scratch / "base") / "rows.jsonl").read_text().splitlines()
    assert [json.loads(row)["preferenceAccuracy"] for row in rows] == [0.0] * len(PREFERENCES)
