"""What the next step of a rollout depends on, and what that step is. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from finetune_operator.api.modelserve import CanaryShare, ModelServe, Revision, RevisionState, RollbackWindow, ShareBy
from finetune_operator.modelserve import history
from finetune_operator.modelserve.history import History
from finetune_operator.modelserve.model import Resolution
from finetune_operator.modelserve.observed import World
from finetune_operator.modelserve.plan import Target
from finetune_trainer.contract.reasons.operator import OperatorReason


class Standing(Enum):
    WORKING = "Working"
    STALLED = "Stalled"
    SERVING = "Serving"
    PAUSED = "Paused"


@dataclass(frozen=True)
class Case:
    """All that the next step depends on."""

    serve: ModelServe
    resolution: Resolution
    target: Target | None
    world: World
    now: datetime
    paced: bool = False  # nothing but a changed default asks for the target
    is_turn: bool = True  # and it may be loaded now


@dataclass(frozen=True)
class Rollout:
    """How it stands, and what to do: `replicas` of the live revision and of the one that loads, and perhaps ask the gate."""

    standing: Standing
    reason: str
    message: str
    live: Revision | None = None
    candidate: Revision | None = None
    replicas: int = 0
    is_live_stopped: bool = False  # to make room for the one that loads
    ask: bool = False  # start the gate
    window: RollbackWindow | None = None  # its revision stays warm, with as many replicas
    candidate_replicas: int | None = None  # of the one that loads, where it is to have fewer
    canary: CanaryShare | None = None  # what that one takes of the traffic
    sleeps: bool = False  # until somebody asks
    requeue_after: float | None = None

    @property
    def pods(self) -> int:
        """How many the revision that is on its way is to have."""
        return self.replicas if self.candidate_replicas is None else self.candidate_replicas

    @property
    def is_shared(self) -> bool:
        """Whether the Service is to select the candidate's pods as well."""
        return self.canary is not None and self.canary.by is ShareBy.REPLICAS and self.canary.weight > 0

    @property
    def routed(self) -> tuple[str, int] | tuple[()]:
        """The revision that the route is to lead to besides, and its percent."""
        if self.candidate is None or self.canary is None or self.canary.by is not ShareBy.ROUTE or self.canary.share == 0:
            return ()
        return self.candidate.name, round(self.canary.share)

    @property
    def loading(self) -> str | None:
        """The revision that is on its way."""
        return self.candidate.name if self.candidate and self.candidate.state is not RevisionState.REFUSED else None

    @property
    def kept(self) -> set[str]:
        """Revisions whose objects stay."""
        live, warm = self.live.name if self.live else None, self.window.revision if self.window else None
        return {name for name in (live, warm, self.loading) if name is not None}


def history_after(case: Case, rollout: Rollout) -> History:
    """Which revisions took traffic, once this step is done."""
    if rollout.live is None:
        return ()
    limit = case.serve.spec.rollout.revision_history_limit
    return history.after(case.world.history, rollout.live, rollout.candidate, limit)


def refused(candidate: Revision, reason: str, message: str) -> Revision:
    """The revision, given up for this."""
    return candidate.model_copy(update={"state": RevisionState.REFUSED, "reason": reason, "message": message})


def refusal(candidate: Revision, live: Revision | None, replicas: int) -> Rollout:
    """A revision was given up, and what served before goes on."""
    rest = f"revision {live.name} goes on serving" if live else "nothing serves"
    text = f"revision {candidate.name} was refused and {rest}: {candidate.message}"
    if candidate.rolled_back_at and live:
        text = f"revision {candidate.name} was rolled back, and revision {live.name} serves again: {candidate.message}"
    return Rollout(Standing.STALLED, candidate.reason or OperatorReason.RevisionRefused, text, live, candidate, replicas)
