"""What a look at a model's layers and weights finds that its user must know, though training goes on.

    config.json, headers of the weights ─► findings/<fingerprint> in the store ─► warnings of each run with this model

A look takes torch, and so is only for models that are to be trained. What it found is kept, so that a run whose training is
done already tells it as well.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from finetune_trainer.context import Context
from finetune_trainer.contract import pipeline
from finetune_trainer.contract.fields import Model
from finetune_trainer.contract.reasons.remarks import RemarkReason
from finetune_trainer.contract.reports import Remark, StepResult
from finetune_trainer.inputs import FINDINGS
from finetune_trainer.model import weights

BASE, TEACHER = "spec.model", "spec.training.distillation.teacher"


def of_models(context: Context, *, trained: bool) -> tuple[Remark, ...]:
    """What is found in the base model, and in a distillation's teacher. `trained` says that the run's training is done already.

    Raises StepFailed where a model's files lack weights, or hold others, and it is still to be trained.
    """
    named = zip(pipeline.models(context.run), (BASE, TEACHER), strict=False)
    return tuple(remark for which, field in named for remark in _kept(context, which, field, trained=trained))


def _kept(context: Context, which: Model, field: str, *, trained: bool) -> tuple[Remark, ...]:
    """What is found in this model, or was found before it was trained."""
    fingerprint = pipeline.findings_fingerprint(which, field)
    if trained and (known := context.store.read(FINDINGS, fingerprint)) is not None:
        return known.result.warnings or ()
    try:
        found = _look(context, which, field)
    except Exception:
        if trained:  # by a release that did not look, or from another place: what was made of it stays
            return ()
        raise
    folder = context.scratch / fingerprint
    folder.mkdir()
    result = StepResult(step=context.step.name, fingerprint=fingerprint, warnings=found)
    context.keep(FINDINGS, folder, result, {"uri": which.uri})
    return found


def _look(context: Context, which: Model, field: str) -> tuple[Remark, ...]:
    """What is found in a model now. Of large files only the beginnings are read."""
    from finetune_trainer.model.complete import check_complete

    folder = context.inputs.model_without_weights(which)
    held: dict[str, Any] = {}
    for name in weights.read_of(context.inputs.weights_of(which), folder):
        held |= weights.tensors_of(partial(context.inputs.begin_of, which, name))
    left = check_complete(folder, held, field)
    said = {RemarkReason.WeightsLeftOut: left, RemarkReason.PartsUnreached: _unreached(folder) if field == BASE else None}
    return tuple(Remark(reason=reason, message=sentence) for reason, sentence in said.items() if sentence)


def _unreached(folder: Path) -> str | None:
    """A sentence about parts of the base model that no text reaches, where there are some: neither method trains them."""
    from finetune_trainer.model.outline import unreached

    idle = unreached(folder)
    if not idle:
        return None
    return (
        f"{BASE}: {len(idle)} of its weights, such as {min(idle)}, are reached by no text: they stay as they are, in the"
        " merged model as well; nothing is to be done unless they were to be trained"
    )
