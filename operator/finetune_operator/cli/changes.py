"""What `promote`, `rollback` and `cancel` write: a merge patch that follows from an object as it is, or why not. Pure.

They set what docs/rollouts.md tells to set by hand; Argo CD's actions (gitops/argocd) write the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.api.modelserve import RevisionState
from finetune_operator.cli.status import conditions, serve_status
from finetune_operator.errors import NotPossible
from finetune_operator.meta import Object
from finetune_operator.names import ANNOTATION_HOLD, ANNOTATION_PROMOTE, ANNOTATION_ROLLBACK
from finetune_operator.problems import is_held


@dataclass(frozen=True)
class Change:
    patch: Object
    told: str  # what it comes to


def promotion(serve: Object, *, step: bool = False) -> Change:
    """Let the revision that has passed its gate take the traffic, or go on to its next share. Raises NotPossible."""
    _not_held(serve)
    status = serve_status(serve)
    candidate = status.candidate
    if candidate is None:
        raise NotPossible(f"{_name(serve)} has no revision that waits; what the spec asks for serves")
    if candidate.state not in (RevisionState.PASSED, RevisionState.CANARY):
        why = f": {candidate.reason}: {candidate.message}" if candidate.reason else ""
        raise NotPossible(f"revision {candidate.name} is {candidate.state.value}; only one that has passed is promoted{why}")
    if step:
        number = 1 if status.canary is None else status.canary.step + 1
        told = f"revision {candidate.name} goes on with step {number}; after the last one it takes the traffic"
        return Change(_annotation(ANNOTATION_PROMOTE, f"{candidate.name}/{number}"), told)
    return Change(_annotation(ANNOTATION_PROMOTE, candidate.name), f"revision {candidate.name} takes the traffic")


def rollback(serve: Object) -> Change:
    """Leave the live revision for the one before it. Raises NotPossible."""
    _not_held(serve)
    status = serve_status(serve)
    if status.live is None:
        raise NotPossible(f"{_name(serve)} serves no revision yet")
    before = next((r for r in status.history if r.name != status.live.name and r.rolled_back is None), None)
    if before is None:
        raise NotPossible(f"no revision before {status.live.name} can be gone back to; status.history names those there are")
    told = f"revision {status.live.name} is left for {before.name}, until the spec asks for another"
    return Change(_annotation(ANNOTATION_ROLLBACK, status.live.name), told)


def cancellation(job: Object) -> Change:
    """Stop a job so that it can go on: training saves a checkpoint, and its GPUs are free. Raises NotPossible."""
    _not_held(job)
    ended = next((kind for kind in ("Succeeded", "Failed") if kind in conditions(job)), None)
    if ended is not None:
        raise NotPossible(f"{_name(job)} has ended: {ended}; --delete removes it")
    if job["spec"].get("suspend"):
        raise NotPossible(f"{_name(job)} is suspended already; --delete removes it")
    resume = f'kubectl patch ftj {job["metadata"]["name"]} --type merge -p \'{{"spec": {{"suspend": false}}}}\''
    return Change({"spec": {"suspend": True}}, f"it saves a checkpoint and stops; to go on: {resume}")


def _annotation(name: str, value: str) -> Object:
    return {"metadata": {"annotations": {name: value}}}


def _name(body: Object) -> str:
    return f"{body['kind']} {body['metadata']['name']}"


def _not_held(body: Object) -> None:
    if is_held(body):
        raise NotPossible(f"{_name(body)} is held, and nothing is done for it: remove its annotation {ANNOTATION_HOLD}")
