"""Why no pod could be created, from the words of whoever refused it: a quota and a LimitRange have remedies of their own."""

from __future__ import annotations

from finetune_trainer.contract.reasons.operator import OperatorReason

REFUSAL = "PodRefusal"  # what a Ref of this kind names is a Job; read for it is the newest event that tells of a refused pod
# As the API server's admission plugins say it: a quota is used up, or wants to be told; a LimitRange bounds each container.
_WORDS = {
    OperatorReason.QuotaExceeded: ("exceeded quota", "failed quota"),
    OperatorReason.LimitRangeExceeded: ("usage per Container is", "usage per Pod is", "limit to request ratio per"),
}


def reason_of(text: str) -> OperatorReason:
    """The reason of a refusal; FailedCreate for all that has no remedy of its own."""
    found = (reason for reason, words in _WORDS.items() if any(word in text for word in words))
    return next(found, OperatorReason.FailedCreate)
