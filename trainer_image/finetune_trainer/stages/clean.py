"""Clean: remove from the artifact store what earlier runs of this job alone have, once this one has passed its gates.

What may go is decided in store/runs.py. A run is not worse for what it could not remove: that is told, and the next run of the
job tries again.
"""

from __future__ import annotations

from finetune_trainer.context import Context
from finetune_trainer.contract.pipeline import TRAIN
from finetune_trainer.contract.reports import Cleaned, StepResult
from finetune_trainer.failures import StepFailed
from finetune_trainer.store import runs

UNKNOWN = "nothing was removed, as nobody told what is in use"


def run(context: Context) -> StepResult:
    """Remove it, and report how much that was."""
    result = StepResult(step=context.step.name, fingerprint=context.inputs.fingerprint(context.step.name))
    try:
        cleaned = _clean(context)
    except StepFailed as failure:
        cleaned = Cleaned(message=failure.message)
    print(f"removed {cleaned.entries} entries, {cleaned.bytes} bytes, of {cleaned.runs} earlier runs. {cleaned.message}")
    return result.model_copy(update={"cleaned": cleaned})


def _clean(context: Context) -> Cleaned:
    keep, in_use, objects = context.run.keep_runs, context.pod.in_use, context.store.objects
    wanted = context.inputs.fingerprints()
    if keep is None or in_use is None:
        return Cleaned(message=UNKNOWN)
    context.progress("removing what earlier runs have made")
    place = runs.place(context.run, wanted)
    runs.passed(objects, place)
    if context.store.read(TRAIN, wanted[TRAIN]) is not None:  # a training that was killed behind its commit leaves some
        context.store.drop_checkpoints(wanted[TRAIN], keep=0)
    gone, size = runs.remove(objects, place, keep, in_use)
    return Cleaned(runs=len(gone.runs), entries=len(gone.entries), bytes=size)
