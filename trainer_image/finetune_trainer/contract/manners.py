"""Where an engine does otherwise than OpenAI's API says, so that its front makes up for it. Pure."""

from __future__ import annotations

from finetune_trainer.contract.fields import Strict


class Manners(Strict):
    """What is said of an engine; `model` is filled in for each ModelServe."""

    model: str = ""
    """The one name that is answered: the engine itself would answer any."""
    hidden: tuple[str, ...] = ()
    """What paths begin with that nobody is to reach, as they tell of other callers, or change what those are answered."""
    askers_faults: tuple[str, ...] = ()
    """Words of errors that the engine takes for its own (5xx), where what was asked can't be had of this model (400)."""
