"""Why a Job of ours waits in a queue of Kueue, and whether that can ever come to anything. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.decision import Ref
from finetune_operator.finetunejob.observed import Waiting
from finetune_operator.kueue import LOCAL_QUEUE, NOT_SERVED
from finetune_operator.meta import Object
from finetune_trainer.contract.reasons.operator import OperatorReason


def is_left(queue: str, asked: str | None, named: Mapping[Ref, Object | None]) -> bool:
    """Whether a Job that waits in this queue is to leave it, as another one is asked for by now, or none.

    Where none is asked for, Kueue itself may have put the Job into a queue, the namespace's default, that is there.
    """
    if asked is not None:
        return asked != queue
    return named.get(Ref(LOCAL_QUEUE, queue)) in (None, NOT_SERVED)


def why_queued(queue: str, job: FineTuneJob, named: Mapping[Ref, Object | None]) -> Waiting:
    """What a Job waits for in this queue, as the end of a sentence: to be admitted, or for somebody to make the queue."""
    found = named.get(Ref(LOCAL_QUEUE, queue))
    field = "spec.scheduling.queueName" if job.spec.scheduling.queue_name else f"the profile {job.spec.profile}"
    if found is None:
        text = (
            f": {field} names the LocalQueue {queue}, which does not exist in this namespace; create it, or correct the field"
        )
        return Waiting(OperatorReason.QueueNotFound, text)
    if found == NOT_SERVED:
        text = f": {field} names the LocalQueue {queue}, but this cluster has no Kueue; install it, or remove the field"
        return Waiting(OperatorReason.KueueNotFound, text)
    return Waiting(OperatorReason.Queued, f" until the queue {queue} of Kueue admits it")
