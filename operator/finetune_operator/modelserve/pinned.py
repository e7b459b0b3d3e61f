"""Whether another revision than the spec's is asked for: one that somebody pinned, or the one before a rollback. Pure.

spec.rollout.pinnedRevision, annotation finetune.dev/pin   that revision, whatever the spec says
annotation finetune.dev/rollback                           names the revision that is left: the one before it, until the spec
                                                           asks for another
It is rendered as its ControllerRevision says and has passed its gate once: it takes over as soon as it has loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.api.modelserve import ModelServe
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.modelserve import history
from finetune_operator.modelserve.model import Obstacle
from finetune_operator.modelserve.observed import World
from finetune_operator.modelserve.plan import Target
from finetune_operator.names import (
    ANNOTATION_MODEL_DIGEST,
    ANNOTATION_MODEL_URI,
    ANNOTATION_PIN,
    ANNOTATION_RETRY,
    ANNOTATION_ROLLBACK,
    short_hash,
)
from finetune_trainer.contract.reasons.operator import OperatorReason

PIN_FIELD = "spec.rollout.pinnedRevision"


@dataclass(frozen=True)
class Pin:
    """The revision that is asked for instead; None where there is none to go back to."""

    revision: str | None
    by: str


def pin(serve: ModelServe, asked: Target | None, world: World) -> Pin | None:
    """The annotation comes before the field: it is what somebody does at night."""
    notes = serve.metadata.annotations
    if name := notes.get(ANNOTATION_PIN):
        return Pin(name, f"the annotation {ANNOTATION_PIN}")
    if name := serve.spec.rollout.pinned_revision:
        return Pin(name, PIN_FIELD)
    left = notes.get(ANNOTATION_ROLLBACK)
    if left and asked is not None and left == asked.revision:
        return Pin(history.before(world.history, left), f"the annotation {ANNOTATION_ROLLBACK}")
    return None


def follow(serve: ModelServe, found: Pin, asked: Target | None, world: World) -> Target | Obstacle:
    """The pinned revision as it was rendered, or why it can't be had."""
    if asked is not None and found.revision == asked.revision:
        return asked
    manifest = world.records.get(found.revision or "")
    if found.revision is None or manifest is None:
        known = ", ".join(p.revision for p in world.history if p.revision in world.records) or "none is remembered"
        wish = found.revision or "before this one"
        text = f"{found.by} asks for the revision {wish}, which is not remembered; set one of: {known}"
        return Obstacle(OperatorReason.RevisionNotFound, text)
    notes = manifest["metadata"].get("annotations", {})
    model = ResolvedModel(
        source=f"revision/{found.revision}",
        uri=notes.get(ANNOTATION_MODEL_URI, ""),
        digest=notes.get(ANNOTATION_MODEL_DIGEST),
    )
    trial = short_hash("pinned", serve.metadata.annotations.get(ANNOTATION_RETRY, ""), length=6)
    return Target(found.revision, trial, model, manifest["spec"]["template"], pinned_by=found.by)
