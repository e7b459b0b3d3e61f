"""A ModelServe with autoscaling.minReplicas 0: whether its live revision sleeps, and what it waits for. Pure.

awake ── a Job says that nobody has asked for idleSeconds ──► asleep: no pods, the gateway holds who comes
  ▲                                                             │
  └─────────── a Job says that somebody waits ──────────────────┘
It is asleep where the live revision's Deployment is to have no pods, so that a status that is lost changes nothing. A revision
on its way, a rollback window, an adapter that is asked, and whatever somebody has to look at keep it awake.
"""

from __future__ import annotations

from finetune_operator.api.modelserve import ModelServe, Revision
from finetune_operator.modelserve.adapters import is_asking
from finetune_operator.modelserve.case import Case, Rollout, Standing
from finetune_operator.modelserve.deployed import Deployed
from finetune_operator.modelserve.observed import Gate, Verdict
from finetune_operator.names import object_name
from finetune_trainer.contract.gateway import Until
from finetune_trainer.contract.reasons.operator import OperatorReason


def is_asked(serve: ModelServe) -> bool:
    """Whether it is to sleep while nobody asks."""
    spec = serve.spec
    return spec.autoscaling is not None and spec.autoscaling.min_replicas == 0 and not spec.suspend and spec.replicas > 0


def has_gateway(case: Case, live: Revision) -> bool:
    """Whether it is to have a gateway: also until its pods are there again, where it is to sleep no more."""
    if is_asked(case.serve):
        return True
    deployed, is_paused = case.world.deployed.get(live.name), case.serve.spec.suspend or case.serve.spec.replicas == 0
    return case.world.gateway > 0 and not is_paused and (deployed is None or deployed.available == 0)


def goes_through(case: Case, live: Revision) -> bool:
    """Whether the Service leads to the gateway."""
    return case.world.gateway > 0 and has_gateway(case, live)


def asleep(case: Case, live: Revision) -> Rollout | None:
    """No pods, where nobody asks; None while it is to have some."""
    deployed, scaling = case.world.deployed.get(live.name), case.serve.spec.autoscaling
    if deployed is None or scaling is None or not is_asked(case.serve):
        return None
    if any(is_asking(told) for told in case.serve.status.adapters):  # a gate asks its pods, past the gateway
        return None
    verdict = case.world.gates.get(job_name(case.serve, live, deployed))
    has_come = verdict is not None and verdict.verdict is Verdict.PASSED
    if has_come is (deployed.replicas == 0) or (deployed.replicas > 0 and case.world.gateway == 0):
        return None
    text = f"nobody has asked for {scaling.idle_seconds} s: no pods; the first request starts them"
    text += f", and is held for {scaling.hold_seconds} s at most"
    return Rollout(Standing.PAUSED, OperatorReason.ScaledToZero, text, live, sleeps=True)


def waits_for(case: Case, rollout: Rollout) -> tuple[str, Until] | None:
    """Name of the Job that tells when that changes, and what it waits for; None where nothing is waited for."""
    live, is_awake = rollout.live, rollout.standing is Standing.SERVING and rollout.window is None
    deployed = None if live is None else case.world.deployed.get(live.name)
    if live is None or deployed is None or case.world.gateway == 0 or not is_asked(case.serve):
        return None
    if not rollout.sleeps and not is_awake:
        return None
    return job_name(case.serve, live, deployed), Until.ASKED if deployed.replicas == 0 else Until.IDLE


def is_lost(gate: Gate | None) -> bool:
    """Whether such a Job ended without having seen what it waited for: it is made anew."""
    return gate is not None and gate.verdict in (Verdict.FAILED, Verdict.UNKNOWN)


def job_name(serve: ModelServe, live: Revision, deployed: Deployed) -> str:
    """Another one each time the number of pods that are wanted has changed, and for another idleSeconds."""
    scaling, turn = serve.spec.autoscaling, str(deployed.body["metadata"].get("generation", 0))
    if deployed.replicas == 0 or scaling is None:
        return object_name(serve.metadata.name, live.name, "asked", turn)
    return object_name(serve.metadata.name, live.name, f"idle{scaling.idle_seconds}", turn)
