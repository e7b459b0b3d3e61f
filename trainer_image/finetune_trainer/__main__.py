"""Run one step of a pipeline: what a pod does.

    python -m finetune_trainer STEP

reads the run's configuration from $FINETUNE_RUN_FILE, prints progress as JSON lines, writes its result or the reason of
its failure to $FINETUNE_TERMINATION_LOG and exits with a contract.ExitCode.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback

from finetune_trainer import environment, tracing
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Failure, StepResult, Termination
from finetune_trainer.ranks import distributed, launching
from finetune_trainer.reporting import log
from finetune_trainer.termination import as_failure, exit_on_sigterm, message

STEPS = """steps, in the order in which a run takes them:
  prepare              fetch and check model and data, render the rows, compute whether it fits
  train                fine-tune, with checkpoints in the artifact store
  merge                merge the adapter into the base model
  quantize-<artifact>  make one artifact of spec.artifacts
  evaluate             score the base, the merged model and every safetensors artifact on the test rows
  evaluate-<artifact>  score one GGUF artifact
  publish-<n>          copy artifacts to spec.publish[n]
  clean                remove what earlier runs have made, but for those that spec.storage.artifacts.keepRuns keeps
"""


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
    exit_on_sigterm()  # train puts a handler of its own in place
    distributed.note_start()
    try:
        termination, status = Termination(result=run_step(step)), int(ExitCode.OK)
    except SystemExit as stop:
        status = int(stop.code) if isinstance(stop.code, int) else int(ExitCode.TERMINATED)
        termination = Termination(failure=Failure(reason=StepReason.Terminated, message="the pod was told to stop"))
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
    from finetune_trainer.reporting.keep import keep

    pod = environment.read()
    run = read_run(pod.run_file)
    with tracing.of_step(name, pod, is_rank=distributed.is_rank()) as trace:
        if launching.is_launched_here(name, run.devices):
            return launching.launch(name, run.devices, pod, scratch_folder(pod, name))
        reporter = make_reporter(pod.metrics_port, silent=not distributed.is_first(), also=trace.reading if trace else None)
        context = open_context(name, run, pod, reporter)
        result: StepResult | None = importlib.import_module(f"finetune_trainer.stages.{context.step.stage}").run(context)
        return None if result is None else keep(context, result)


def heard_out(arguments: list[str] | None = None) -> int:
    """Run the step; in a pod that is to keep its log, in a process whose end is outlived by that which keeps it."""
    pod = environment.read()
    if pod.kept_log is not None and not distributed.is_rank():
        status = log.follow(pod)
        if status is not None:
            return status
    return main(arguments)


if __name__ == "__main__":
    exit_status = heard_out()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)  # threads of a download that was given up must not hold the pod
