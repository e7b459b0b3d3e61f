"""Where an engine does otherwise than OpenAI's API says, so that its front makes up for it. Pure."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from finetune_trainer.contract.fields import Strict

HEALTH = "/health"


class Lacks(Strict):
    """What an engine does nothing about, so that its front does all of it: names, keys, lengths, metrics."""

    metrics: str
    """What the names of its metrics begin with."""
    reached: tuple[str, ...]
    """The paths that lead to it, and no others."""
    ignored: dict[str, Any] = Field(default_factory=dict)
    """Fields of requests that it passes over in silence, with the value that asks for nothing."""
    known: tuple[str, ...] = ()
    """The fields that it reads, where it passes over all others in silence. Empty: it refuses what it doesn't know."""
    renamed: dict[str, str] = Field(default_factory=dict)
    """Fields that it knows by another name."""
    tokens: int
    """How many it writes at most where a request doesn't say."""
    health: str = HEALTH
    """Its path that answers 200 while it works."""
    at_once: int = 1
    """Requests that it answers side by side; others wait."""
    called: dict[str, str] = Field(default_factory=dict)
    """Paths at which it calls the model otherwise, with what follows the model's name there."""
    leaves_out: bool = False
    """It leaves messages out of a conversation that is too long, and says the tokens of the others."""


class Manners(Strict):
    """What is said of an engine; `model` is filled in for each ModelServe."""

    model: str = ""
    """The one name that is answered: the engine itself would answer any."""
    hidden: tuple[str, ...] = ()
    """What paths begin with that nobody is to reach, as they tell of other callers, or change what those are answered."""
    askers_faults: tuple[str, ...] = ()
    """Words of errors that the engine takes for its own (5xx), where what was asked can't be had of this model (400)."""
    lacks: Lacks | None = None
    """What it does nothing about. None: its front does no more than the above."""
