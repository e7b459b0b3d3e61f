"""`finetune run --local` goes on with a smaller micro-batch where a GPU's memory did not hold the estimated one."""

from __future__ import annotations

import base64
import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.builders import DATASET
from tests.unit.test_sentences import DATA, GOOD, write

from finetune_operator.api.finetunejob_status import FineTuneJobStatus
from finetune_operator.cli import local
from finetune_operator.cli.document import read_document
from finetune_operator.cli.pythons import Pythons
from finetune_operator.cli.workdir import Given, Workdir, prepare_workdir
from finetune_operator.finetunejob.runs import current_run
from finetune_trainer.contract import pod
from finetune_trainer.contract.exits import Retry
from finetune_trainer.contract.pipeline import Step
from finetune_trainer.contract.reasons.remarks import RemarkReason
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import FitFacts, Progress, Remark, StepResult

FIT = FitFacts(predicted_bytes=1, available_bytes=2, micro_batch_size=16, gradient_checkpointing="Off", terms={})


def holding(rows: int, asked: list[int | None]) -> Callable[..., StepResult]:
    """Steps on a GPU whose memory holds so many rows; `asked` notes the micro-batch that each training was told."""

    def run(attempts: local.Attempts, step: Step, size: int | None, _report: Callable[[Progress], None]) -> StepResult:
        if step.stage == "train":
            asked.append(size)
            if (size or FIT.micro_batch_size) > rows:
                raise local.StepStopped(step.name, "OutOfGpuMemory", "too small", attempts.workdir.log("train"), Retry.SMALLER)
        return StepResult(step=step.name, fingerprint="f", fit=FIT if step.stage == "prepare" else None)

    return run


def ran(tmp_path: Path, text: str) -> list[str]:
    """What was told on the way through all steps."""
    told: list[str] = []
    document = read_document(write(tmp_path, text + DATA))
    watcher = local.Watcher(lambda _: None, lambda _: None, lambda _, why: told.append(why), lambda *_: None, lambda _: None)
    local.run_locally(document, Workdir(tmp_path), watcher)
    return told


def test_the_micro_batch_halves_until_the_memory_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(local, "_run_step", holding(4, asked))
    told = ran(tmp_path, GOOD)
    assert asked == [None, 8, 4]
    assert told == [f"too small; it goes on with micro-batches of {size}" for size in (8, 4)]


@pytest.mark.parametrize(("rows", "retry", "trainings"), [(0, "", 5), (4, "  retry: {onOutOfMemory: Fail}\n", 1)])
def test_it_ends_where_one_row_does_not_fit_or_the_job_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, retry: str, trainings: int
) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(local, "_run_step", holding(rows, asked))
    with pytest.raises(local.StepStopped, match="too small"):
        ran(tmp_path, GOOD + retry)
    assert len(asked) == trainings


def test_a_step_runs_under_the_python_that_stands_for_its_image(tmp_path: Path) -> None:
    fp8, nf4 = (
        "{name: fp8, format: CompressedTensors, quantization: FP8}",
        "{name: nf4, format: BitsAndBytes, quantization: NF4}",
    )
    text = GOOD.replace("{name: q4, format: GGUF, quantization: Q4_K_M}", f"{fp8}, {nf4}")
    document = read_document(write(tmp_path, text + "  evaluation: {engine: VLLM}\n" + DATA))
    run, _ = current_run(document.job)
    found = {step.name: Pythons("/q/python", "/e/python").of(run, step) for step in run.steps}
    assert found == dict.fromkeys(("prepare", "train", "merge", "quantize-nf4"), sys.executable) | {
        "quantize-fp8": "/q/python",
        "evaluate": "/e/python",
    }
    assert {Pythons().of(run, step) for step in run.steps} == {sys.executable}


def test_each_step_finds_the_secrets_that_it_reads_and_no_others(tmp_path: Path) -> None:
    named = GOOD.replace('"hf://org/model"', '"hf://org/model", secretRef: {name: hub}') + (
        "  publish: [{uri: s3://b/p, secretRef: {name: mine}}, {uri: s3://b/q, secretRef: {name: theirs}}]\n"
        "  storage: {artifacts: {uri: s3://b/store, secretRef: {name: mine}}}\n"
    )
    document = read_document(write(tmp_path, named + DATA))
    run, _ = current_run(document.job)
    folders = {name: tmp_path / name for name in ("mine", "theirs")}
    for folder in folders.values():
        folder.mkdir()
    workdir, found = Workdir(tmp_path / "work", secrets=folders), {}
    for step in run.steps:
        workdir.mount_secrets(document.job, run, step)
        links = (workdir.mounts / "secrets").iterdir()
        found[step.name] = {link.name: link.resolve().name for link in links}
    assert found["prepare"] == found["train"] == {"store": "mine"}, "hub was not given: the environment counts"
    assert found["publish-0"] == {"store": "mine", "publish": "mine"}
    assert found["publish-1"] == {"store": "mine", "publish": "theirs"}


def test_that_python_is_what_is_started(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0 $*" >&2; exit 2\n')
    python.chmod(0o755)
    document = read_document(write(tmp_path, GOOD + "  evaluation: {engine: VLLM}\n" + DATA))
    run, _ = current_run(document.job)
    workdir = Workdir(tmp_path, Pythons(evaluator=str(python)))
    (tmp_path / "logs").mkdir()
    step = next(step for step in run.steps if step.name == "evaluate")
    with pytest.raises(local.StepStopped):
        local._run_step(local.Attempts(document.job, run, workdir), step, None, lambda _: None)
    assert workdir.log("evaluate").read_text() == f"{python} -m finetune_trainer evaluate\n"


def test_a_step_that_the_system_killed_was_out_of_memory(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    document = read_document(write(tmp_path, GOOD + "  evaluation: {engine: VLLM}\n" + DATA))
    run, _ = current_run(document.job)
    (tmp_path / "logs").mkdir()
    step = next(step for step in run.steps if step.name == "evaluate")
    attempts = local.Attempts(document.job, run, Workdir(tmp_path, Pythons(evaluator=str(python))))
    with pytest.raises(local.StepStopped) as stop:
        local._run_step(attempts, step, None, lambda _: None)
    assert (stop.value.reason, stop.value.retry) == (StepReason.OutOfMemory, Retry.COUNTED)


def test_a_config_maps_binary_data_is_laid_out_as_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "convert_hf_to_gguf.py").touch()
    monkeypatch.setenv(pod.ENV_LLAMA_CPP, str(tmp_path))
    packed = gzip.compress(b'{"prompt": "a", "completion": "b"}\n')
    text = DATA.replace("\ndata:", "\nbinaryData:").replace('"{}"', base64.b64encode(packed).decode())
    document = read_document(write(tmp_path, GOOD + text))
    run, _ = current_run(document.job)
    workdir = prepare_workdir(document, run, tmp_path / "work", Given({}, {}, Pythons()))
    assert (workdir.mounts / "configmaps" / "facts" / "train.jsonl").read_bytes() == packed


def test_what_is_hardly_meant_is_told_before_and_after_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Remark(reason=RemarkReason.BatchAboveRows, message="few rows")
    told: list[str] = []

    def steps(_attempts: local.Attempts, status: FineTuneJobStatus, step: Step, _: local.Watcher) -> Any:
        told.append(step.name)
        if step.name != "prepare":
            raise local.StepStopped(step.name, StepReason.Hang, "", tmp_path)
        return status, StepResult(step="prepare", fingerprint="f", warnings=(few,))

    monkeypatch.setattr(local, "_run_to_end", steps)
    text = GOOD.replace("method: LoRA", "method: Full, lora: {rank: 4}")
    document = read_document(write(tmp_path, text + DATA))
    quiet: Any = lambda *_: None  # noqa: E731
    watcher = local.Watcher(quiet, quiet, quiet, quiet, lambda remark: told.append(remark.reason))
    with pytest.raises(local.StepStopped):
        local.run_locally(document, Workdir(tmp_path), watcher)
    assert told == ["FieldUnused", "prepare", "BatchAboveRows", "train"]


def test_a_gate_that_the_rows_can_not_answer_ends_the_run_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared(_attempts: local.Attempts, step: Step, *_: Any) -> StepResult:
        assert step.name == "prepare"
        return StepResult(step="prepare", fingerprint="f", dataset=DATASET, fit=FIT)

    monkeypatch.setattr(local, "_run_step", prepared)
    with pytest.raises(local.StepStopped, match="the rows are PromptCompletion, and accuracy is for rows of format") as stop:
        ran(tmp_path, GOOD + "  evaluation: {gates: [{name: g, metric: accuracy, min: 0.5}]}\n")
    assert (stop.value.step, stop.value.reason) == ("prepare", StepReason.InvalidSpec)
