"""The train stage on a tiny model: it learns, it can be stopped anywhere, and a resumed run is the unbroken one."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.trainer.entries import PAIRS, context, prepare, render
from tests.trainer.pods import environment

from finetune_trainer.context import Context
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pod import ENV_GRACE_SECONDS, ENV_MICRO_BATCH_SIZE
from finetune_trainer.contract.reports import FitFacts, Progress, StepResult
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Training
from finetune_trainer.failures import StepFailed
from finetune_trainer.speed import acceleration
from finetune_trainer.speed.fused_lora import fuse
from finetune_trainer.stages import train

MakeRun = Callable[..., RunConfig]
LORA = {
    "method": "LoRA",
    "precision": "FP32",
    "globalBatchSize": 4,
    "microBatchSize": 2,
    "maxLength": 128,
    "learningRate": 1e-2,
}


@pytest.fixture(autouse=True)
def _grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_GRACE_SECONDS, "120")


class Losses:
    """Collects the loss of each step; sends this process a SIGTERM after the step named."""

    def __init__(self, terminate_after: int | None = None) -> None:
        self.by_step: dict[int, float] = {}
        self._terminate_after = terminate_after

    def __call__(self, reading: Progress) -> None:
        if reading.loss is None:
            return
        self.by_step[reading.step] = reading.loss
        if reading.step == self._terminate_after:
            os.kill(os.getpid(), signal.SIGTERM)


def trained(run: RunConfig, tmp_path: Path) -> tuple[StepResult, Losses]:
    losses = Losses()
    result = train.run(context(run, "train", tmp_path, losses))
    assert result is not None, "the first rank commits"
    return result, losses


def preempted(run: RunConfig, tmp_path: Path, after: int) -> Losses:
    losses = Losses(terminate_after=after)
    with pytest.raises(StepFailed) as stopped:
        train.run(context(run, "train", tmp_path, losses))
    assert stopped.value.exit_code is ExitCode.PREEMPTED
    return losses


def committed(run: RunConfig, tmp_path: Path) -> Path:
    return context(run, "merge", tmp_path).inputs.output("train")[1]


def checkpoints(run: RunConfig, tmp_path: Path) -> list[int]:
    at = context(run, "train", tmp_path)
    return at.store.checkpoints(at.inputs.fingerprint("train"))


@pytest.mark.parametrize(
    ("method", "bits", "rate", "file", "falls_to"),
    [  # adapters can't move a random model's embedding, so they fall less
        ("QLoRA", 4, 1e-2, "adapter_model.safetensors", 0.85),
        ("QLoRA", 8, 1e-2, "adapter_model.safetensors", 0.85),
        ("LoRA", 4, 1e-2, "adapter_model.safetensors", 0.85),
        ("Full", 4, 2e-3, "model.safetensors", 0.7),
    ],
)
def test_loss_falls(make_run: MakeRun, tmp_path: Path, method: str, bits: int, rate: float, file: str, falls_to: float) -> None:
    training = LORA | {"method": method, "quantization": {"bits": bits}, "learningRate": rate, "maxSteps": 24}
    run = make_run(training=training)
    prepare(run, tmp_path)
    result, losses = trained(run, tmp_path)
    assert result.train is not None
    assert result.artifact is not None
    assert losses.by_step[24] < falls_to * losses.by_step[1]
    assert (result.train.steps, result.train.resumed_from_step) == (24, 0)
    folder = committed(run, tmp_path)
    assert (folder / file).is_file()
    assert (folder / "README.md").read_text().startswith("---\npipeline_tag: text-generation\n")
    assert str(tmp_path) not in "".join(f.read_text() for f in folder.glob("*.json") if f.name != "tokenizer.json")


def test_loss_counts_the_completion_only(make_run: MakeRun, tmp_path: Path, tiny_model: Path) -> None:
    run = make_run(training=LORA | {"maxSteps": 1, "globalBatchSize": 8, "microBatchSize": 8})
    prepare(run, tmp_path)
    _, losses = trained(run, tmp_path)
    assert losses.by_step[1] == pytest.approx(untrained_loss(tiny_model), rel=1e-5)


def untrained_loss(folder: Path) -> float:
    """Mean loss of the model as it is over the completion tokens of PAIRS, computed plainly."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    total, count = 0.0, 0
    for pair in PAIRS:
        row = render(tokenizer, *pair)
        tokens, counts = torch.tensor(row.input_ids), torch.tensor(row.counted[1:])
        with torch.no_grad():
            logits = network(input_ids=tokens[None]).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits[counts], tokens[1:][counts], reduction="sum"))
        count += int(counts.sum())
    return total / count


def check_resumed(make_run: MakeRun, tmp_path: Path, settings: dict[str, Any], after: int) -> None:
    """A run that is stopped within a step and started again has the losses and the adapter of one that never was."""
    unbroken_run = make_run(training=settings, store={"uri": "pvc://store/unbroken"})
    prepare(unbroken_run, tmp_path)
    _, unbroken = trained(unbroken_run, tmp_path)

    run = unbroken_run.model_copy(update={"store": StoreConfig(uri="pvc://store/broken")})
    prepare(run, tmp_path)
    before = preempted(run, tmp_path, after=after)
    assert checkpoints(run, tmp_path) == [after]
    result, later = trained(run, tmp_path)

    assert result.train is not None
    assert result.train.resumed_from_step == after
    assert before.by_step | later.by_step == unbroken.by_step
    weights = [(committed(r, tmp_path) / "adapter_model.safetensors").read_bytes() for r in (run, unbroken_run)]
    assert weights[0] == weights[1]
    assert checkpoints(run, tmp_path) == []  # the work is committed


def test_pain_20_resumed_run_equals_the_unbroken_one(make_run: MakeRun, tmp_path: Path) -> None:
    """Bit for bit, with dropout, stopped between two micro-batches in the middle of an epoch."""
    check_resumed(make_run, tmp_path, LORA | {"maxSteps": 7, "lora": {"dropout": 0.1}}, after=3)


def test_a_resumed_run_in_16_bits_on_the_fused_path_equals_the_unbroken_one(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT reads adapters in 16 bits, as GPUs have them, into float32 copies, with which the fused path would not compute."""
    fused = list[int]()
    monkeypatch.setattr(acceleration, "accelerate", lambda network, *_: fused.append(fuse(network)))
    settings = LORA | {"method": "QLoRA", "precision": "BF16", "maxSteps": 6, "learningRate": 3e-3}
    check_resumed(make_run, tmp_path, settings, after=2)
    assert all(fused)


def test_damaged_checkpoint_is_passed_over(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(training=LORA | {"maxSteps": 5, "checkpoint": {"everySteps": 1, "keep": 2}})
    prepare(run, tmp_path)
    preempted(run, tmp_path, after=3)
    assert checkpoints(run, tmp_path) == [3, 2]
    (optimizer,) = (tmp_path / "mounts/claims/store").rglob("checkpoint/*/3/*/optimizer.pt")
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    result, losses = trained(run, tmp_path)
    assert result.train is not None
    assert result.train.resumed_from_step == 2
    assert sorted(losses.by_step) == [3, 4, 5]


def test_pain_11_accumulation_changes_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    """One micro-batch of eight rows against eight of one: rows of unequal lengths weigh by their tokens."""
    by_micro = {}
    for micro in (8, 1):
        settings = LORA | {"maxSteps": 4, "globalBatchSize": 8, "microBatchSize": micro, "learningRate": 1e-3}
        run = make_run(training=settings, store={"uri": f"pvc://store/{micro}"})
        prepare(run, tmp_path)
        by_micro[micro] = trained(run, tmp_path)[1].by_step
    assert by_micro[1] == pytest.approx(by_micro[8], rel=1e-4)


def test_pain_09_a_smaller_micro_batch_goes_on_where_memory_ran_out(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory holds one row only from the third step on; what follows is the run that never ran out."""
    import torch

    from finetune_trainer.termination import as_failure
    from finetune_trainer.training.supervised import SupervisedLoop

    settings = LORA | {"maxSteps": 5, "microBatchSize": 4, "learningRate": 1e-3, "checkpoint": {"everySteps": 1}}
    unbroken = make_run(training=settings, store={"uri": "pvc://store/unbroken"})
    prepare(unbroken, tmp_path)
    expected = trained(unbroken, tmp_path)[1].by_step
    plain = SupervisedLoop.compute_loss

    def compute_loss(loop: SupervisedLoop, model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
        if loop.state.global_step >= 2 and len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(loop, model, inputs, *more, **named)

    monkeypatch.setattr(SupervisedLoop, "compute_loss", compute_loss)
    run = make_run(training=settings)
    prepare(run, tmp_path)
    with pytest.raises(torch.OutOfMemoryError) as out:
        trained(run, tmp_path)
    assert as_failure(out.value).exit_code is ExitCode.OUT_OF_GPU_MEMORY
    monkeypatch.setenv(ENV_MICRO_BATCH_SIZE, "1")
    result, losses = trained(run, tmp_path)
    assert result.fit is not None
    assert result.train is not None
    assert (result.fit.micro_batch_size, result.train.resumed_from_step) == (1, 2)
    assert losses.by_step == pytest.approx({step: loss for step, loss in expected.items() if step > 2}, rel=1e-4)


@pytest.mark.parametrize(("told", "kept"), [(None, 7), (1, None)])
def test_layers_keep_no_more_than_they_must_after_memory_ran_out(told: int | None, kept: int | None) -> None:
    fit = FitFacts(predicted_bytes=1, micro_batch_size=1, gradient_checkpointing="Selective", kept_layers=7)
    context = SimpleNamespace(
        inputs=SimpleNamespace(prepared=lambda: SimpleNamespace(fit=fit)),
        pod=SimpleNamespace(micro_batch_size=told),
        run=SimpleNamespace(training=Training()),
    )
    assert train._fit(cast(Context, context)).kept_layers == kept


def test_pain_10_non_finite_loss_stops_before_it_spoils(make_run: MakeRun, tmp_path: Path) -> None:
    """An adapter scaled by 1e37 is harmless while B is zero, and overflows as soon as B has moved."""
    settings = LORA | {"maxSteps": 5, "lora": {"alpha": 1e38}, "checkpoint": {"everySteps": 1}}
    run = make_run(training=settings)
    prepare(run, tmp_path)
    with pytest.raises(StepFailed, match=r"step \d.*lower training\.learningRate") as stopped:
        trained(run, tmp_path)
    assert stopped.value.exit_code is ExitCode.NON_FINITE_LOSS
    assert context(run, "train", tmp_path).committed() is None


@pytest.mark.parametrize("bits", [4, 8])
def test_validation_within_training_leaves_it_alone(make_run: MakeRun, tmp_path: Path, bits: int) -> None:
    """bitsandbytes repacks 4-bit weights in evaluation on some CPUs; the training after it must not notice."""
    settings = LORA | {"method": "QLoRA", "quantization": {"bits": bits}, "maxSteps": 4}
    plain_run = make_run(training=settings)
    prepare(plain_run, tmp_path)
    _, plain = trained(plain_run, tmp_path)
    run = plain_run.model_copy(
        update={
            "training": plain_run.training.model_copy(update={"evaluate_every_steps": 1}),
            "store": StoreConfig(uri="pvc://store/validated"),
        }
    )
    prepare(run, tmp_path, validation=PAIRS[:2])
    result, validated = trained(run, tmp_path)
    assert result.train is not None
    assert result.train.validation_loss is not None
    assert math.isfinite(result.train.validation_loss)
    assert validated.by_step == plain.by_step


def test_finished_step_is_only_reported_again(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(training=LORA | {"maxSteps": 1})
    prepare(run, tmp_path)
    result, _ = trained(run, tmp_path)
    again, losses = trained(run, tmp_path)
    assert again == result
    assert losses.by_step == {}


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"precision": "FP16"}, r"spec\.training\.precision FP16 needs a GPU"),
        ({"optimizer": "adam_w"}, r"training\.optimizer: transformers knows no adam_w"),
        ({"lora": {"targets": ["q"]}}, r"training\.lora\.targets: q not in this model.*q_proj"),
        ({"lora": {"init": "Orthogonal", "rank": 7}}, r"spec\.training\.lora\.init Orthogonal needs an even rank"),
        ({"quantization": {"bits": 8}}, r"spec\.training\.quantization is for method QLoRA"),
    ],
)
def test_refused_with_the_field_named(make_run: MakeRun, tmp_path: Path, training: dict[str, Any], message: str) -> None:
    run = make_run(training=LORA | {"maxSteps": 1} | training)
    prepare(run, tmp_path)
    with pytest.raises(StepFailed, match=message) as refused:
        trained(run, tmp_path)
    assert refused.value.exit_code is ExitCode.BAD_CONFIG


def test_workers_that_make_batches_are_not_in_the_group_that_torchrun_tells_to_stop() -> None:
    from torch.utils.data import DataLoader, Dataset

    from finetune_trainer.training.loop import workers_apart

    class One(Dataset[int]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, at: int) -> int:
            return at

    seeded: list[int] = []
    loader: Any = DataLoader(One(), num_workers=1, collate_fn=lambda _: os.getpgrp(), worker_init_fn=seeded.append)
    assert next(iter(workers_apart(loader))) != os.getpgrp()


def test_sigterm_to_the_pod_saves_and_says_preempted(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(training=LORA | {"maxSteps": 10000})
    prepare(run, tmp_path)
    given = environment(run, tmp_path, **{ENV_GRACE_SECONDS: "60"})
    command = [sys.executable, "-m", "finetune_trainer", "train"]
    with subprocess.Popen(command, env=given, stdout=subprocess.PIPE, text=True) as pod:
        assert pod.stdout is not None
        readings = (json.loads(line) for line in pod.stdout if line.startswith('{"kind":"progress"'))
        next(r for r in readings if r["step"] > 1)
        pod.send_signal(signal.SIGTERM)
        pod.stdout.read()
    assert pod.returncode == ExitCode.PREEMPTED
    failure = json.loads((tmp_path / "termination").read_text())["failure"]
    assert failure["reason"] == "Preempted"
    (step,) = checkpoints(run, tmp_path)
    assert step > 1
