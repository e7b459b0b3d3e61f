"""A FineTuneJob without a cluster: the same RunConfig, the same steps, each a process of its own on this machine.

They work in the folders of workdir.py.

Where the operator would take another image than the trainer's, another Python may stand for it (pythons.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

from pydantic import ValidationError

import finetune_trainer
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import DONE, FineTuneJobStatus, GateVerdict, StepState
from finetune_operator.cli import environment
from finetune_operator.cli.document import Document
from finetune_operator.cli.words import reported
from finetune_operator.cli.workdir import Workdir
from finetune_operator.finetunejob import fit, gates
from finetune_operator.finetunejob.failures import BY_CODE
from finetune_operator.finetunejob.record import smaller_micro_batch, step_record, with_facts, with_step
from finetune_operator.finetunejob.runs import Run, current_run
from finetune_operator.finetunejob.unused import unused
from finetune_trainer.contract import pod
from finetune_trainer.contract.exits import Retry
from finetune_trainer.contract.pipeline import AFTER_GATES, PREPARE, TRAIN, Step
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Failure, Progress, Remark, StepResult, Termination

GRACE_SECONDS = 120


class StepStopped(Exception):
    """A step did not succeed: reason and message as the operator would put them into the job's status."""

    def __init__(self, step: str, reason: str, message: str, log: Path, retry: Retry = Retry.NEVER) -> None:
        super().__init__(f"{step}: {message}")
        self.step, self.reason, self.message, self.log, self.retry = step, reason, message, log, retry


class Interrupted(Exception):
    """The user, or the system, asked us to stop; the step at work was told and has ended."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_status = 128 + signal_number


@dataclass(frozen=True)
class Watcher:
    """Whoever shows what goes on."""

    started: Callable[[Step], None]
    progress: Callable[[Progress], None]
    again: Callable[[Step, str], None]  # what stood in the way, and how it goes on
    ended: Callable[[Step, StepState], None]
    warned: Callable[[Remark], None]


@dataclass(frozen=True)
class Ending:
    run: Run
    status: FineTuneJobStatus
    verdicts: tuple[GateVerdict, ...]

    @property
    def passed(self) -> bool:
        return not gates.blocking(self.verdicts)


def run_locally(document: Document, workdir: Workdir, watcher: Watcher) -> Ending:
    """Run every step that is not done already. Raises StepStopped and Interrupted."""
    run, status = current_run(document.job)
    for remark in unused(document.job.spec):
        watcher.warned(remark)
    for step in run.steps:
        if step_record(status, step.name).state in DONE:
            watcher.ended(step, StepState.REUSED)
            continue
        if step.stage in AFTER_GATES and gates.blocking(_verdicts(document, status)):
            break
        watcher.started(step)
        status, result = _run_to_end(Attempts(document.job, run, workdir), status, step, watcher)
        for remark in result.warnings or ():
            watcher.warned(remark)
        status = _absorb(document, status, run, step, result, workdir)
        watcher.ended(step, StepState.SUCCEEDED)
    return Ending(run, status, _verdicts(document, status))


def _verdicts(document: Document, status: FineTuneJobStatus) -> tuple[GateVerdict, ...]:
    spec = document.job.spec
    return tuple(gates.verdicts(spec.evaluation.gates, status.scores, spec.training.objective))


def _absorb(
    document: Document, status: FineTuneJobStatus, run: Run, step: Step, result: StepResult, workdir: Workdir
) -> FineTuneJobStatus:
    status = with_step(with_facts(status, run, result), step.name, state=StepState.SUCCEEDED)
    if step.name != PREPARE:
        return status
    if result.fit is not None and (verdict := fit.judge(result.fit, run.config.devices)).status == "False":
        raise StepStopped(step.name, verdict.reason, verdict.message, workdir.log(step.name))
    rows, asked = status.dataset, document.job.spec.evaluation.gates
    if rows is not None and (wrong := "; ".join(gates.unscored(asked, rows.format))):
        raise StepStopped(step.name, StepReason.InvalidSpec, wrong, workdir.log(step.name))
    for done in result.done:
        if run.step(done.step) is not None:
            status = with_step(with_facts(status, run, done), done.step, state=StepState.REUSED)
    return status


@dataclass(frozen=True)
class Attempts:
    job: FineTuneJob
    run: Run
    workdir: Workdir


def _run_to_end(
    attempts: Attempts, status: FineTuneJobStatus, step: Step, watcher: Watcher
) -> tuple[FineTuneJobStatus, StepResult]:
    """A step, and again with a smaller micro-batch where the GPU's memory did not hold the last one, as the operator does."""
    while True:
        size = step_record(status, step.name).micro_batch_size
        try:
            return status, _run_step(attempts, step, size, watcher.progress)
        except StepStopped as stop:
            smaller = smaller_micro_batch(status, step, attempts.job.spec.retry.on_out_of_memory)
            if smaller is None or stop.retry is not Retry.SMALLER:
                raise
            watcher.again(step, f"{stop.message}; it goes on with micro-batches of {smaller}")
            status = with_step(status, step.name, micro_batch_size=smaller)


def _run_step(attempts: Attempts, step: Step, micro_batch: int | None, report: Callable[[Progress], None]) -> StepResult:
    workdir = attempts.workdir
    scratch, log = workdir.root / "scratch", workdir.log(step.name)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    termination = workdir.root / "termination.json"
    termination.unlink(missing_ok=True)
    workdir.mount_secrets(attempts.job, attempts.run, step)
    command = [workdir.pythons.of(attempts.run, step), "-m", "finetune_trainer", step.name]
    told = {} if micro_batch is None else {pod.ENV_MICRO_BATCH_SIZE: str(micro_batch)}
    with (
        log.open("w", encoding="utf-8") as out,
        workdir.reported(step.name).open("a", encoding="utf-8") as kept,
        subprocess.Popen(
            command,
            env=_environment(workdir, scratch, termination) | told,
            stdin=subprocess.DEVNULL,  # no library may ask a person whether a repository's code may run
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
            start_new_session=True,  # a Ctrl-C reaches us alone, and we pass it on as a pod would be told
        ) as process,
        _passed_on(process) as signals,
    ):
        _follow(process, out, kept, report)
        code = process.wait()
    shutil.rmtree(scratch, ignore_errors=True)
    if signals:
        raise Interrupted(signals[0])
    said = _termination(termination)
    if code == 0 and said.result is not None:
        return said.result
    # A machine that runs out of memory kills what takes most of it.
    known = StepReason.OutOfMemory if code == -signal.SIGKILL else BY_CODE.get(code, StepReason.UnexpectedError)
    failure = said.failure or Failure(reason=known, message=known.text)
    raise StepStopped(step.name, failure.reason, failure.message, log, known.exit_code.retry)


def write_report(workdir: Workdir, output: Path) -> str | None:
    """Write the page that tells of the run in this folder; returns why there is none."""
    told = _environment(workdir, workdir.root / "scratch", workdir.root / "termination.json")
    command = [sys.executable, "-m", "finetune_trainer.reporting", str(output), str(workdir.reported(TRAIN))]
    done = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else lines[-1] if lines else f"exit status {done.returncode}"


def _environment(workdir: Workdir, scratch: Path, termination: Path) -> dict[str, str]:
    told = {
        pod.ENV_RUN_FILE: str(workdir.root / "run.json"),
        pod.ENV_MOUNTS: str(workdir.mounts),
        pod.ENV_SCRATCH: str(scratch),
        pod.ENV_TERMINATION_LOG: str(termination),
        pod.ENV_ATTEMPT: "1",
        pod.ENV_POD_UID: f"local-{os.getpid()}",
        pod.ENV_GRACE_SECONDS: str(GRACE_SECONDS),
    }
    return environment.of_step(Path(finetune_trainer.__file__).parents[1], told)


@contextmanager
def _passed_on(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """SIGINT and SIGTERM become SIGTERM for the step, which saves a checkpoint; yields the signals that came."""
    came: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        process.send_signal(signal.SIGTERM if len(came) == 1 else signal.SIGKILL)

    old = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _follow(process: subprocess.Popen[str], log: TextIO, kept: TextIO, report: Callable[[Progress], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if (progress := reported(line)) is not None:
            report(progress)
            kept.write(line)
        else:
            log.write(line)
            log.flush()


def _termination(path: Path) -> Termination:
    try:
        return Termination.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return Termination()  # killed before it could say why
