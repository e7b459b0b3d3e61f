"""Why an attempt has not started to work: what its pod waits for, or why it has none. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from finetune_operator.decision import Ref
from finetune_operator.finetunejob.observed import Attempt, Waiting
from finetune_operator.meta import Object, seconds_since
from finetune_operator.refusals import REFUSAL, reason_of
from finetune_trainer.contract.reasons.operator import OperatorReason

LONG_START_SECONDS = 120.0


def waiting_for(attempt: Attempt, now: datetime) -> Waiting | None:
    """What keeps the pod from starting: what its status says, else that its volumes or image take long.

    A volume that can't be mounted is told in events only, so the message says where to look.
    """
    pod = attempt.pod
    if pod is None:
        return None
    if pod.waiting is not None or pod.pending_since is None:
        return pod.waiting
    if seconds_since(pod.pending_since, now) < LONG_START_SECONDS:
        return None
    look = f"kubectl describe pod {pod.name}"
    return Waiting(OperatorReason.ContainerCreating, f"its volumes or image take over {LONG_START_SECONDS:.0f} s; see `{look}`")


def no_pod(attempt: Attempt, named: Mapping[Ref, Object | None], now: datetime) -> Waiting | None:
    """Why no pod is at work although the Job has not ended, once that has lasted."""
    since = attempt.started_at
    if attempt.pod is not None or since is None:
        return None
    if seconds_since(since, now) < LONG_START_SECONDS:
        return None
    if (event := named.get(Ref(REFUSAL, attempt.job))) is not None:
        text = str(event.get("note", ""))
        return Waiting(reason_of(text), f"its Job has no pod: {text}")
    look = f"`kubectl describe job {attempt.job}`"
    return Waiting(
        OperatorReason.PodNotCreated, f"its Job has no pod; a quota or an admission webhook may refuse it: see {look}"
    )
