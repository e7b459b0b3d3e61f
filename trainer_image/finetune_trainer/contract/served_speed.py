"""How fast a served model answered its gate's prompts."""

from __future__ import annotations

from finetune_trainer.contract.fields import Report


class ServedSpeed(Report):
    """Medians over the gate's prompts, asked one after the other, as streams."""

    prompts: int
    """Prompts that were asked."""
    tokens_per_second: float
    """Tokens of an answer after its first, by the time that they took; 0 where no answer has two."""
    first_token_milliseconds: float
    """From the request to the first piece of the answer."""
