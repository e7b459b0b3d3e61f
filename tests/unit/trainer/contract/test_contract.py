"""What operator and pods say to each other: strict where written, tolerant where read, and within the kubelet's limit."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from finetune_operator.api.evaluation import Evaluation
from finetune_trainer.contract.evaluation import Generation
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.pod import TERMINATION_LIMIT
from finetune_trainer.contract.reasons.steps import RETIRED, StepReason
from finetune_trainer.contract.reports import ArtifactFacts, Failure, Progress, Scores, StepResult, Termination
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.termination import as_failure, message

RUN = {
    "namespace": "team",
    "name": "job",
    "model": {"uri": "hf://org/model"},
    "dataset": {"uri": "configmap://facts/train.jsonl"},
    "training": {},
    "devices": {},
    "store": {"uri": "pvc://store/job"},
}


def test_a_run_config_survives_the_way_through_its_config_map() -> None:
    run = RunConfig.model_validate(RUN)
    assert RunConfig.model_validate_json(run.model_dump_json(by_alias=True)) == run
    assert '"maxLength":2048' in run.model_dump_json(by_alias=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("training", {"epoch": 3}),
        ("training", {"method": "lora"}),
        ("training", {"epochs": 0}),
        ("training", {"maxGradNorm": math.inf}),
        ("training", {"epochs": True}),
        ("training", {"epochs": "2"}),
        ("training", {"packing": "no"}),
        ("training", {"packing": 1}),
        ("model", {"uri": "http://somewhere"}),
        ("dataset", {"uri": "facts.jsonl"}),
        ("surprise", 1),
    ],
)
def test_what_we_write_is_strict(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        RunConfig.model_validate(RUN | {field: value})


@pytest.mark.parametrize(
    ("value", "field"), [(RunConfig.model_validate(RUN), "name"), (StepResult(step="merge", fingerprint="f"), "step")]
)
def test_what_is_said_stays_as_it_was_said(value: BaseModel, field: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(value, field, "another")


def test_what_an_other_version_reports_is_read() -> None:
    line = '{"kind": "progress", "stepName": "train", "step": 3, "newerField": {"a": 1}}'
    assert Progress.model_validate_json(line) == Progress(step_name="train", step=3)
    text = '{"result": {"step": "merge", "fingerprint": "f", "newer": 1}}'
    assert Termination.model_validate_json(text).result == StepResult(step="merge", fingerprint="f")


def test_the_termination_message_drops_the_last_finished_steps_first() -> None:
    scores = Scores(subject="merged", samples=200, values=dict.fromkeys(Metric, 0.123456789))
    artifact = ArtifactFacts(name="q4", format="GGUF", path="quantize/" + "f" * 40, digest="sha256:" + "0" * 64, bytes=9**9)
    done = tuple(StepResult(step=f"evaluate-{n}", fingerprint="f" * 20, artifact=artifact, scores=(scores,)) for n in range(30))
    text = message(Termination(result=StepResult(step="prepare", fingerprint="f", done=done)))
    assert TERMINATION_LIMIT - 600 < len(text.encode()) <= TERMINATION_LIMIT
    read = Termination.model_validate_json(text).result
    assert read is not None
    assert read.done == done[: len(read.done)]
    assert len(read.done) > 5


def test_a_long_failure_is_cut() -> None:
    text = message(Termination(failure=Failure(reason=StepReason.UnexpectedError, message="ü" * 9000)))
    assert len(text.encode()) <= TERMINATION_LIMIT
    read = Termination.model_validate_json(text).failure
    assert read is not None
    assert read.message.startswith("üüü")


@pytest.mark.parametrize(
    ("error", "code", "reason", "text"),
    [
        (StepFailed(StepReason.DatasetEmpty, "no rows"), ExitCode.BAD_DATA, "DatasetEmpty", "no rows"),
        (MemoryError(), ExitCode.OUT_OF_MEMORY, "OutOfMemory", "raise the memory limit"),
        (OSError(28, "No space left", "/scratch/x"), ExitCode.UNEXPECTED, "ScratchFull", "no space left on /scratch/x"),
        (KeyError("a"), ExitCode.UNEXPECTED, "UnexpectedError", "KeyError: 'a'"),
        (RuntimeError("one\ntwo"), ExitCode.UNEXPECTED, "UnexpectedError", "RuntimeError: one"),
        (RuntimeError(), ExitCode.UNEXPECTED, "UnexpectedError", "RuntimeError: RuntimeError"),
    ],
)
def test_every_exception_becomes_an_exit_code_and_one_line(
    error: BaseException, code: ExitCode, reason: str, text: str
) -> None:
    failure = as_failure(error)
    assert (failure.exit_code, failure.reason) == (code, reason)
    assert text in failure.message
    assert "\n" not in failure.message


@pytest.mark.parametrize(
    ("reported", "read"),
    [*RETIRED.items(), ("DatasetEmpty", "DatasetEmpty"), ("NewerThanThis", "NewerThanThis")],
)
def test_a_pod_of_another_release_is_understood(reported: str, read: str) -> None:
    text = json.dumps({"failure": {"reason": reported, "message": "m"}})
    failure = Termination.model_validate_json(text).failure
    assert failure == Failure(reason=read, message="m")


def test_a_run_takes_all_that_the_spec_takes() -> None:
    for field in ("samples", "max_new_tokens"):
        of_spec, of_run = (model.model_fields[field] for model in (Evaluation, Generation))
        assert (of_spec.metadata, of_spec.default) == (of_run.metadata, of_run.default)


def test_the_operators_part_needs_no_trainer_libraries() -> None:
    code = (
        "import sys, finetune_trainer.contract.run, finetune_trainer.contract.pipeline, finetune_trainer.memory.fit\n"
        "found = {'torch', 'transformers', 'datasets', 'obstore', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(', '.join(found) or 0)"
    )
    source = Path(__file__).parents[4] / "trainer_image"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_library_of_buckets_is_whole_before_threads_use_it() -> None:
    code = "import sys, finetune_trainer.store.entries; sys.exit('obstore.store' not in sys.modules)"
    source = Path(__file__).parents[4] / "trainer_image"
    assert subprocess.run([sys.executable, "-c", code], cwd=source, check=False).returncode == 0
