"""Run one step of a pipeline: what a pod does.

    python -m finetune_trainer STEP

reads the run's configuration from $FINETUNE_RUN_FILE, prints progress as JSON lines, writes its result or the reason of
its failure to $FINETUNE_TERMINATION_LOG and exits with a contract.ExitCode.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from finetune_trainer import contract, distributed, launching
from finetune_trainer.contract import ExitCode, Failure, StepResult, Termination
from finetune_trainer.failures import StepFailed, first_line

STEPS = """steps, in the order in which a run takes them:
  prepare              fetch and check model and data, render the rows, compute whether it fits
  train                fine-tune, with checkpoints in the artifact store
  merge                merge the adapter into the base model
  quantize-<artifact>  make one artifact of spec.artifacts
  evaluate             score the base, the merged model and every safetensors artifact on the test rows
  evaluate-<artifact>  score one GGUF artifact
  publish-<n>          copy artifacts to spec.publish[n]
"""
TERMINATED = 128 + signal.SIGTERM


def main(arguments: list[str] | None = None) -> int:
    """Run the step named on the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune_trainer",
        description="Run one step of a fine-tuning pipeline, as a pod of the operator does.",
        epilog=STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("step", help="name of the step")
    step = parser.parse_args(arguments).step
    # As a container's first process it would ignore SIGTERM by default. Train puts its own handler in place.
    signal.signal(signal.SIGTERM, _terminate)
    distributed.note_start()
    try:
        termination, status = Termination(result=run_step(step)), int(ExitCode.OK)
    except SystemExit as stop:
        status = int(stop.code) if isinstance(stop.code, int) else TERMINATED
        termination = Termination(failure=Failure(reason="Terminated", message="the pod was told to stop"))
    except BaseException as error:
        failure = as_failure(error)
        if failure.exit_code in (ExitCode.UNEXPECTED, ExitCode.OUT_OF_GPU_MEMORY, ExitCode.OUT_OF_MEMORY):
            traceback.print_exc()
        print(f"{step} stopped: {failure}", file=sys.stderr)
        termination = Termination(failure=Failure(reason=failure.reason, message=failure.message))
        status = int(failure.exit_code)
    distributed.leave_report(message(termination), status)
    return status


def run_step(name: str) -> StepResult | None:
    """Load the run's configuration and run the program of the step; its ranks, where there are to be many.

    None comes back from ranks and nodes that have nothing to report.
    """
    from finetune_trainer.context import open_context, read_run, scratch_folder
    from finetune_trainer.progress import make_reporter

    run = read_run(Path(os.environ.get(contract.ENV_RUN_FILE, contract.RUN_FILE)))
    if launching.is_launched_here(name, run.devices):
        return launching.launch(name, run.devices, scratch_folder(name))
    context = open_context(name, run, make_reporter())
    result: StepResult | None = importlib.import_module(f"finetune_trainer.stages.{context.step.stage}").run(context)
    return result


def as_failure(error: BaseException) -> StepFailed:
    """What any exception means for the operator."""
    if isinstance(error, StepFailed):
        return error
    torch = sys.modules.get("torch")  # who never imported it can't have run out of its memory
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        remedy = "lower spec.training.maxLength, use QLoRA, or take a larger GPU"
        text = f"the GPU's memory is too small: {remedy} ({first_line(error, 160)})"
        return StepFailed(ExitCode.OUT_OF_GPU_MEMORY, "OutOfGpuMemory", text)
    if isinstance(error, MemoryError):
        text = "the machine had no more memory: raise the memory limit of this stage in spec.stages"
        return StepFailed(ExitCode.OUT_OF_MEMORY, "OutOfMemory", text)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StepFailed(ExitCode.UNEXPECTED, "ScratchFull", f"no space left on {error.filename or 'the scratch disk'}")
    return StepFailed(ExitCode.UNEXPECTED, "Unexpected", f"{type(error).__name__}: {first_line(error)}")


def message(termination: Termination) -> str:
    """The termination message, cut to what the kubelet keeps.

    Of a failure the text is cut. Of a result the last steps of `done` go first: a step that is started although it is
    done only reports again.
    """
    text = _json(termination)
    while len(text.encode()) > contract.TERMINATION_LIMIT and termination.result and termination.result.done:
        shorter = termination.result.model_copy(update={"done": termination.result.done[:-1]})
        termination = Termination(result=shorter)
        text = _json(termination)
    if len(text.encode()) > contract.TERMINATION_LIMIT and termination.failure:
        cut = Failure(reason=termination.failure.reason, message=termination.failure.message[:1000] + "…")
        text = _json(Termination(failure=cut))
    return text


def _json(termination: Termination) -> str:
    return termination.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


if __name__ == "__main__":
    exit_status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)  # threads of a download that was given up must not hold the pod
