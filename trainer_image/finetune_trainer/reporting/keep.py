"""The page that tells of a run, kept in its artifact store: <root>/report/<run>/report.html."""

from __future__ import annotations

import sys

from finetune_trainer.context import Context
from finetune_trainer.contract.pipeline import EVALUATE, PREPARE, TRAIN, digest
from finetune_trainer.contract.reports import StepResult
from finetune_trainer.inputs import Inputs
from finetune_trainer.reporting import facts, page
from finetune_trainer.termination import as_failure

STAGES = (PREPARE, TRAIN, EVALUATE)  # they have the rows at hand, and the others add nothing that these don't tell later


def keep(context: Context, result: StepResult) -> StepResult:
    """The step's result with where the page lies, once there is a training to tell of.

    A page that can't be written fails no step: the log says why, and the next step tries again.
    """
    if context.step.stage not in STAGES:
        return result
    try:
        return result.model_copy(update={"report": _written(context.inputs)})
    except Exception as error:  # whatever it is: what the step made is committed already
        print(f"the report is not kept: {as_failure(error).message}", file=sys.stderr)
        return result


def _written(inputs: Inputs) -> str | None:
    """Where the page lies below the store's root; None before training.

    Steps that end side by side each write it. Who finds afterwards that another had ended meanwhile writes it once more.
    """
    wanted = inputs.fingerprints()
    path, told = f"report/{digest(inputs.run.name, wanted)}/report.html", facts.manifests(inputs, wanted)
    if TRAIN not in told:
        return None
    while True:
        inputs.store.objects.overwrite(path, page.render(facts.read(inputs, None)).encode())
        before, told = told, facts.manifests(inputs, wanted)
        if told == before:
            return path
