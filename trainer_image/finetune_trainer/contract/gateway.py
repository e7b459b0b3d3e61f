"""What a gateway holds for a model that sleeps, and what is waited for at it. Pure.

callers ──► gateway ── what it holds, what it passes on, since when nobody asks ──► a Job that ends when that is enough
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from finetune_trainer.contract.fields import Report, Strict

PATH = "/finetune/gateway"  # of the gateway: the state


class GatewayState(Report):
    """How one gateway stands."""

    held: int
    """Requests that wait for a pod."""
    running: int
    """Requests that are not answered yet, held ones among them."""
    idle_seconds: float
    """Since the last one was answered."""


class Until(StrEnum):
    ASKED = "Asked"  # somebody waits
    IDLE = "Idle"  # nobody has asked for a while


class Look(Strict):
    """What a Job waits for."""

    host: str  # stands for the addresses of all pods of the gateway
    port: int
    until: Until
    idle_seconds: int


def is_so(found: Collection[GatewayState | None], look: Look) -> bool:
    """Whether what was waited for has come; None stands for a gateway that tells nothing."""
    known = [state for state in found if state is not None]
    if look.until is Until.ASKED:
        return any(state.held > 0 for state in known)
    quiet = [state for state in known if state.running == 0 and state.idle_seconds >= look.idle_seconds]
    return 0 < len(quiet) == len(found)
