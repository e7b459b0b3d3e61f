"""How an attempt failed: whether to try again, the reason (part of the API) and a sentence that says what to change.

    what was done to the pod ─┐
    its exit code ────────────┼─► Failure(retry: FREE | COUNTED | SMALLER | NEVER, reason, message)
    what it reported ─────────┘

What follows from an exit code stands beside it in contract/exits.py; all reasons are in contract/reasons.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from finetune_operator.finetunejob.observed import Attempt, Pod
from finetune_operator.meta import quantity_of
from finetune_trainer.contract.exits import ExitCode, Retry
from finetune_trainer.contract.pipeline import TRAIN, Step
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reasons.steps import StepReason

_AMOUNTS = re.compile(r"was using (\S+),? request is (\S+)")


@dataclass(frozen=True)
class Failure:
    retry: Retry
    reason: str
    message: str
    exit_code: int | None = None
    node: str | None = None


# What an exit code means where the pod could not say more itself.
BY_CODE: dict[int, StepReason] = {
    reason.exit_code: reason
    for reason in (
        StepReason.UnexpectedError,
        StepReason.InvalidSpec,
        StepReason.InvalidDataset,
        StepReason.SourceNotFound,
        StepReason.SourceDenied,
        StepReason.SourceUnavailable,
        StepReason.StoreUnavailable,
        StepReason.OutOfGpuMemory,
        StepReason.DoesNotFit,
        StepReason.NonFiniteLoss,
        StepReason.Hang,
        StepReason.VerificationFailed,
        StepReason.LostRank,
        StepReason.WorldIncomplete,
        StepReason.Preempted,
        StepReason.Killed,
        StepReason.Terminated,
    )
}
RESULT_LOST = Failure(Retry.COUNTED, OperatorReason.ResultLost, OperatorReason.ResultLost.text)
JOB_DELETED = Failure(Retry.FREE, OperatorReason.JobDeleted, OperatorReason.JobDeleted.text)
POD_DELETED = Failure(Retry.FREE, OperatorReason.PodDeleted, OperatorReason.PodDeleted.text)
POD_LOST = Failure(Retry.FREE, OperatorReason.PodLost, OperatorReason.PodLost.text)


def failure_of(attempt: Attempt, step: Step) -> Failure:
    """Why a failed attempt at a step failed. Its stage is named in remedies: spec.stages.<stage>."""
    pod = attempt.pod
    if pod is None:
        return POD_DELETED
    found = _from_outside(pod, step) or _from_code(pod.exit_code)
    told = pod.termination.failure if pod.termination else None
    if told is not None:
        found = replace(found, reason=told.reason, message=told.message)
    return replace(found, exit_code=pod.exit_code, node=pod.node)


def _from_outside(pod: Pod, step: Step) -> Failure | None:
    """What was done to the pod outweighs its exit code, unless it explained a failure of its own."""
    if pod.oom_killed:
        text = f"the pod used more memory than it may; raise spec.stages.{step.stage}.resources"
        on_cpu = step.stage == TRAIN and not step.needs_gpu  # a micro-batch has to fit into the pod's memory then
        return Failure(Retry.SMALLER if on_cpu else Retry.COUNTED, StepReason.OutOfMemory, text)
    if pod.removed == "Evicted" and "exceed" in pod.removal.lower():  # a limit of its own on disk
        text = f"the pod was evicted: {pod.removal}; raise spec.storage.scratch.size or its ephemeral-storage"
        return Failure(Retry.COUNTED, StepReason.ScratchFull, text)
    if pod.removed == "Evicted" and _used_more_than_asked(pod.removal):
        text = f"the pod was evicted: {pod.removal}; raise the requests of spec.stages.{step.stage}.resources"
        return Failure(Retry.COUNTED, pod.removed, text)
    explained = pod.termination is not None and pod.termination.failure is not None
    if pod.removed is None or (explained and pod.exit_code not in (ExitCode.PREEMPTED, ExitCode.TERMINATED)):
        return None
    reason = OperatorReason.PodDeleted if pod.removed == "Deleted" else pod.removed
    return Failure(Retry.FREE, reason, pod.removal or POD_DELETED.message)


def _used_more_than_asked(removal: str) -> bool:
    """Whether the node was short of what a container of the pod took beyond its request, as the kubelet tells the amounts."""
    amounts = [(quantity_of(used.rstrip(",.")), quantity_of(asked.rstrip(",."))) for used, asked in _AMOUNTS.findall(removal)]
    return any(used > asked for used, asked in amounts if used is not None and asked is not None)


def _from_code(code: int | None) -> Failure:
    if code is None:
        return POD_LOST
    if (known := BY_CODE.get(code)) is not None:
        return Failure(known.exit_code.retry, known, known.text)
    return Failure(Retry.COUNTED, StepReason.UnexpectedError, f"the program ended with exit code {code}; see its log")
