"""How a pod ends: what any exception means, the termination message within the kubelet's limit, and the exit status."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from finetune_trainer import environment
from finetune_trainer.contract import pod
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Failure, Remark, StepResult, Termination
from finetune_trainer.failures import StepFailed, first_line

CUT_WARNING = 160  # characters; two lines on a terminal


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process by SystemExit(143): a container's first process would ignore it."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(int(ExitCode.TERMINATED))

    signal.signal(signal.SIGTERM, stop)


def finish(program: Callable[[], Termination | None]) -> int:
    """Run a program, write its termination message, and return the exit status.

    A program that has more to tell returns it; a failure among that ends as VERIFICATION_FAILED.
    """
    exit_on_sigterm()
    termination, status = Termination(), int(ExitCode.OK)
    try:
        termination = program() or termination
        if termination.failure is not None:
            print(f"{termination.failure.reason}: {termination.failure.message}", file=sys.stderr)
            status = int(ExitCode.VERIFICATION_FAILED)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(ExitCode.UNEXPECTED)
        termination = Termination(failure=Failure(reason=StepReason.Terminated, message="the pod was told to stop"))
    except BaseException as error:
        failure = as_failure(error)
        if failure.exit_code is ExitCode.UNEXPECTED:
            traceback.print_exc()
        print(failure, file=sys.stderr)
        termination = Termination(failure=Failure(reason=failure.reason, message=failure.message))
        status = int(failure.exit_code)
    environment.read().termination_log.write_text(message(termination), encoding="utf-8")
    return status


def as_failure(error: BaseException) -> StepFailed:
    """What any exception means for the operator."""
    if isinstance(error, StepFailed):
        return error
    torch = sys.modules.get("torch")  # who never imported it can't have run out of its memory
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        remedy = "lower spec.training.maxLength, use QLoRA, or take a larger GPU"
        text = f"the GPU's memory is too small: {remedy} ({first_line(error, 160)})"
        return StepFailed(StepReason.OutOfGpuMemory, text)
    if isinstance(error, MemoryError):
        text = "the machine had no more memory: raise the memory limit of this stage in spec.stages"
        return StepFailed(StepReason.OutOfMemory, text)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StepFailed(StepReason.ScratchFull, f"no space left on {error.filename or 'the scratch disk'}")
    return StepFailed(StepReason.UnexpectedError, f"{type(error).__name__}: {first_line(error)}")


def message(termination: Termination) -> str:
    """The termination message, cut to what the kubelet keeps.

    The text of a failure is cut. A result loses the last steps of `done` first: a step that is started although it is done
    only reports again. Then its warnings are cut to their beginnings, and at last it loses the last of them.
    """
    text = _json(termination)
    for result in _shorter(termination.result):
        if len(text.encode()) <= pod.TERMINATION_LIMIT:
            return text
        text = _json(Termination(result=result))
    if len(text.encode()) > pod.TERMINATION_LIMIT and termination.failure:
        cut = Failure(reason=termination.failure.reason, message=termination.failure.message[:1000] + "…")
        text = _json(Termination(failure=cut))
    return text


def _shorter(result: StepResult | None) -> Iterator[StepResult]:
    """The result with less and less in it."""
    while result and result.done:
        yield (result := result.model_copy(update={"done": result.done[:-1]}))
    if result and result.warnings:
        yield (result := result.model_copy(update={"warnings": tuple(_cut(warning) for warning in result.warnings)}))
    while result and result.warnings:
        yield (result := result.model_copy(update={"warnings": result.warnings[:-1]}))


def _cut(warning: Remark) -> Remark:
    """A warning whose sentence is cut to its beginning, which tells what it is about."""
    said = warning.message
    return warning if len(said) <= CUT_WARNING else warning.model_copy(update={"message": f"{said[: CUT_WARNING - 1]}…"})


def _json(termination: Termination) -> str:
    return termination.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)
