"""What nothing but a changed default asks for is loaded by turns: else every model of a cluster is loaded at once. Pure."""

from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.modelserve import Revision
from finetune_operator.decision import Observed
from finetune_operator.modelserve.case import Case, Rollout, Standing
from finetune_operator.modelserve.plan import Target, asks_only_new_defaults
from finetune_operator.settings import Settings
from finetune_trainer.contract.reasons.operator import OperatorReason

AGAIN_SECONDS = 15.0  # what ends a turn is another object's event


def paced(case: Case, observed: Observed, settings: Settings) -> Case:
    """The case with what is known of turns: so many at once in the cluster, and one in a namespace."""
    manifest = case.world.records.get(case.world.live or "")
    if case.target is None or case.world.live is None or manifest is None or settings.rollouts_at_once == 0:
        return case
    if not asks_only_new_defaults(case.serve, case.target, case.world.live, manifest, settings):
        return case
    others = observed.paced
    free = len(others) < settings.rollouts_at_once and case.serve.metadata.namespace not in others
    return replace(case, paced=True, is_turn=free)


def waits(case: Case, target: Target, live: Revision | None) -> Rollout | None:
    """The live revision goes on until the turn of this ModelServe comes. What has begun goes on."""
    known = case.serve.status.candidate
    begun = target.revision in case.world.deployed or (known is not None and known.name == target.revision)
    if live is None or not case.paced or case.is_turn or begun:
        return None
    text = (
        f"revision {target.revision}, with the operator's new default image, waits until other ModelServes have loaded theirs"
    )
    wanted = case.serve.spec.replicas
    told = f"{text}; revision {live.name} serves"
    return Rollout(Standing.WORKING, OperatorReason.AwaitingTurn, told, live, replicas=wanted, requeue_after=AGAIN_SECONDS)
