"""How several ranks share out a run: the strategy that Auto takes, each rank's part of the global batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pod import ENV_POD_UID
from finetune_trainer.contract.reports import DatasetFacts, FitFacts, ModelFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Method, Training
from finetune_trainer.failures import StepFailed
from finetune_trainer.memory import fit
from finetune_trainer.memory.estimate import CPU_FIXED, GPU_FIXED, frozen_bytes
from finetune_trainer.memory.fit import Teacher, available_memory, fit_for
from finetune_trainer.memory.shape import shape_of

MISTRAL = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
MODEL = ModelFacts(revision="r", digest="d", parameters=7_241_732_096, architecture="Mistral", bytes=1)
ROWS = DatasetFacts(
    format="Text",
    train_digest="d",
    test_digest="d",
    train_rows=100,
    validation_rows=0,
    test_rows=0,
    dropped_rows=0,
    train_tokens=1000,
    longest_row_tokens=512,
)
GIB = 1 << 30


def make_run(training: dict[str, Any], devices: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "namespace": "team",
            "name": "job",
            "model": {"uri": "hf://a/b"},
            "dataset": {"uri": "hf://c/d"},
            "store": {"uri": "pvc://store/job"},
            "training": training,
            "devices": devices,
        }
    )


def taught_bytes() -> int:
    """What a teacher of this shape takes under QLoRA."""
    return frozen_bytes(shape_of(MISTRAL, MODEL.parameters), Training(method=Method.QLORA), on_gpu=True)


def fitted(folder: Path, training: dict[str, Any], teacher: Teacher | None = None, **devices: Any) -> FitFacts:
    (folder / "config.json").write_text(json.dumps(MISTRAL))
    run = make_run({"globalBatchSize": 16} | training, {"gpus": 4, "memoryBytes": 80 * GIB} | devices)
    return fit_for(run, MODEL, ROWS, folder, teacher)


@pytest.mark.parametrize(
    ("training", "devices", "strategy"),
    [
        ({"method": "QLoRA"}, {"gpus": 1}, None),
        ({"method": "QLoRA"}, {}, Strategy.DDP),
        ({"method": "QLoRA"}, {"strategy": "FSDP"}, Strategy.FSDP),
        ({"method": "Full"}, {}, Strategy.FSDP),  # 7 billion weights of 10 bytes and more don't fit one GPU
        ({"method": "QLoRA", "precision": "FP32"}, {"gpus": 0, "nodes": 2}, Strategy.DDP),
        ({"method": "QLoRA", "quantization": {"bits": 8}}, {}, Strategy.DDP),
        ({"method": "QLoRA", "lora": {"modulesToSave": ["lm_head"]}}, {}, Strategy.DDP),
    ],
)
def test_auto_shards_what_does_not_fit(
    tmp_path: Path, training: dict[str, Any], devices: dict[str, Any], strategy: Strategy | None
) -> None:
    assert fitted(tmp_path, training, **devices).strategy is strategy


@pytest.mark.parametrize(("gpus", "fixed"), [(1, GPU_FIXED), (0, CPU_FIXED)])
def test_without_a_gpu_the_estimate_is_that_of_cpus(tmp_path: Path, gpus: int, fixed: int) -> None:
    assert fitted(tmp_path, {"method": "QLoRA"}, gpus=gpus).terms["fixed"] == fixed


def test_8_bit_weights_are_not_shared_out_even_where_they_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"it fits with spec\.training\.quantization\.bits: 4") as refused:
        fitted(tmp_path, {"method": "QLoRA", "quantization": {"bits": 8}}, memoryBytes=8 * GIB)
    assert refused.value.exit_code is ExitCode.DOES_NOT_FIT


def test_modules_trained_whole_are_not_shared_out_even_where_they_do_not_fit(tmp_path: Path) -> None:
    lora = {"method": "LoRA", "lora": {"modulesToSave": ["embed_tokens", "lm_head"]}}
    assert fitted(tmp_path, {"method": "LoRA"}, memoryBytes=12 * GIB).strategy is Strategy.FSDP
    with pytest.raises(StepFailed, match=r"LoRA with microBatchSize .* needs") as refused:
        fitted(tmp_path, lora, memoryBytes=12 * GIB)
    assert refused.value.exit_code is ExitCode.DOES_NOT_FIT


def test_micro_batches_of_all_ranks_make_the_global_batch(tmp_path: Path) -> None:
    found = fitted(tmp_path, {"globalBatchSize": 24}, nodes=2)
    assert 24 % (8 * found.micro_batch_size) == 0


@pytest.mark.parametrize("training", [{"globalBatchSize": 6}, {"microBatchSize": 8}])
def test_a_batch_that_can_not_be_shared_out_is_refused(tmp_path: Path, training: dict[str, Any]) -> None:
    with pytest.raises(StepFailed, match=r"spec\.training\.globalBatchSize must be a multiple of numNodes") as refused:
        fitted(tmp_path, training)
    assert refused.value.exit_code is ExitCode.BAD_CONFIG


@pytest.mark.parametrize(
    "whole", [{"keepCheckpoint": "Best", "evaluateEverySteps": 1}, {"optimizer": "adamw_bnb_8bit"}, {"objective": "ORPO"}]
)
def test_auto_takes_no_strategy_that_the_settings_do_not_go_with(tmp_path: Path, whole: dict[str, Any]) -> None:
    """Where the model fits no single GPU the job is refused before it holds any."""
    assert fitted(tmp_path, {"method": "LoRA"}, memoryBytes=12 * GIB).strategy is Strategy.FSDP
    with pytest.raises(StepFailed) as refused:
        fitted(tmp_path, {"method": "LoRA"} | whole, memoryBytes=12 * GIB)
    assert refused.value.exit_code is ExitCode.DOES_NOT_FIT
    assert fitted(tmp_path, {"method": "LoRA"} | whole).strategy is Strategy.DDP


def test_a_teacher_takes_its_share_first(tmp_path: Path) -> None:
    training = {"method": "QLoRA", "objective": "Distillation", "distillation": {"teacher": {"uri": "hf://a/t"}}}
    teacher = Teacher(MODEL, tmp_path)
    beside = fitted(tmp_path, training, teacher, gpus=1, memoryBytes=24 * GIB)
    taught = beside.terms["teacher"]
    alone = fitted(tmp_path, training, gpus=1, memoryBytes=24 * GIB - taught)
    assert taught == taught_bytes()
    more = {"terms": alone.terms | {"teacher": taught}, "predicted_bytes": alone.predicted_bytes + taught}
    assert beside == alone.model_copy(update=more | {"available_bytes": 24 * GIB})
    assert fitted(tmp_path, training, teacher, gpus=1, memoryBytes=None).available_bytes is None


def test_a_teacher_is_read_in_the_type_that_is_computed_in(tmp_path: Path) -> None:
    training = {"method": "LoRA", "objective": "Distillation", "distillation": {"teacher": {"uri": "hf://a/t"}}}
    on_gpus = fitted(tmp_path, training, Teacher(MODEL, tmp_path), gpus=1)
    on_cpus = fitted(tmp_path, training, Teacher(MODEL, tmp_path), gpus=0, memoryBytes=500 * GIB)
    assert (on_gpus.terms["teacher"], on_cpus.terms["teacher"]) == (2 * MODEL.parameters, 4 * MODEL.parameters)


@pytest.mark.parametrize(
    ("memory", "sentence"),
    [
        (
            taught_bytes() - 1,
            r"the weights of spec\.training\.distillation\.teacher need 3\.\d GiB, the device has 3\.\d GiB",
        ),
        (taught_bytes(), r"distillation\.teacher need 3\.\d GiB"),
        (taught_bytes() + GIB, r"the device has 1\.0 GiB.* \(the teacher's weights take 3\.\d GiB beside that\)$"),
    ],
)
def test_a_teacher_that_leaves_too_little_is_told(tmp_path: Path, memory: int, sentence: str) -> None:
    training = {"method": "QLoRA", "objective": "Distillation", "distillation": {"teacher": {"uri": "hf://a/t"}}}
    with pytest.raises(StepFailed, match=sentence) as refused:
        fitted(tmp_path, training, Teacher(MODEL, tmp_path), gpus=1, memoryBytes=memory)
    assert (refused.value.exit_code, refused.value.reason) == (ExitCode.DOES_NOT_FIT, "DoesNotFit")


def test_a_model_of_a_kind_that_is_not_known_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in MISTRAL.items() if k != "vocab_size"}))
    with pytest.raises(StepFailed, match=r"Mistral is no decoder-only .* its config\.json lacks vocab_size$") as said:
        fit_for(make_run({}, {"gpus": 1}), MODEL, ROWS, tmp_path)
    assert (said.value.exit_code, said.value.reason) == (ExitCode.BAD_CONFIG, "ModelUnsupported")


@pytest.mark.parametrize(
    ("devices", "pod", "limit", "available"),
    [
        ({"gpus": 0, "memoryBytes": 5}, None, "7000000", 5),
        ({"gpus": 1}, None, "7000000", None),
        ({"gpus": 0}, None, "7000000", 7_000_000),
        ({"gpus": 0}, None, "max\n", 8000 * 1024),
        ({"gpus": 0}, "uid", "7000000", 8000 * 1024),
    ],
)
def test_memory_of_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: dict[str, Any], pod: str | None, limit: str, available: int | None
) -> None:
    """It is as large as the run says; else a GPU's is not known, and a machine's is what it has and this process may use."""
    (tmp_path / "meminfo").write_text("MemFree: 1 kB\nMemTotal:       8000 kB\n")
    (tmp_path / "limit").write_text(limit)
    monkeypatch.setattr(fit, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(fit, "MEMORY_LIMITS", (tmp_path / "absent", tmp_path / "limit"))
    monkeypatch.delenv(ENV_POD_UID, raising=False)
    if pod:
        monkeypatch.setenv(ENV_POD_UID, pod)
    assert available_memory(make_run({}, devices)) == available


def test_the_kernels_files_that_tell_of_memory() -> None:
    assert [str(path) for path in (fit.MEMINFO, *fit.MEMORY_LIMITS)] == [
        "/proc/meminfo", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]  # fmt: skip
