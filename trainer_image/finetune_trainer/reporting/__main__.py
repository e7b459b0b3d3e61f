"""Write the report of a run: `python -m finetune_trainer.reporting OUTPUT [PROGRESS]`, told of the run as a step's pod is."""

from __future__ import annotations

import sys
from pathlib import Path

from finetune_trainer import environment
from finetune_trainer.context import read_run
from finetune_trainer.failures import StepFailed
from finetune_trainer.inputs import Inputs
from finetune_trainer.reporting import facts, page
from finetune_trainer.store.entries import open_store


def main(output: str, progress: str | None = None) -> int:
    """Write it; 1 and a sentence where there is nothing to tell of yet."""
    pod = environment.read()
    try:
        run = read_run(pod.run_file)
        inputs = Inputs(run, open_store(run.store, pod.mounts), pod.scratch / "report", pod.mounts)
        told = facts.read(inputs, Path(progress) if progress else None)
    except StepFailed as failure:
        print(f"no report yet: {failure.message}", file=sys.stderr)
        return 1
    Path(output).write_text(page.render(told), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
