"""How the small programs around a served model end: a Termination and an ExitCode, like a step's, but without a run."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from finetune_trainer import contract
from finetune_trainer.__main__ import TERMINATED, as_failure, message
from finetune_trainer.contract import ExitCode, Failure, Termination


def finish(program: Callable[[], Termination | None]) -> int:
    """Run a program, write its termination message, and return the exit status.

    A program that has more to tell returns it; a failure among that ends as VERIFICATION_FAILED.
    """
    signal.signal(signal.SIGTERM, _terminate)  # a container's first process would ignore it
    termination, status = Termination(), int(ExitCode.OK)
    try:
        termination = program() or termination
        if termination.failure is not None:
            print(f"{termination.failure.reason}: {termination.failure.message}", file=sys.stderr)
            status = int(ExitCode.VERIFICATION_FAILED)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(ExitCode.UNEXPECTED)
        termination = Termination(failure=Failure(reason="Terminated", message="the pod was told to stop"))
    except BaseException as error:
        failure = as_failure(error)
        if failure.exit_code is ExitCode.UNEXPECTED:
            traceback.print_exc()
        print(failure, file=sys.stderr)
        termination = Termination(failure=Failure(reason=failure.reason, message=failure.message))
        status = int(failure.exit_code)
    path = Path(os.environ.get(contract.ENV_TERMINATION_LOG, contract.TERMINATION_LOG))
    path.write_text(message(termination), encoding="utf-8")
    return status


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
