"""How an attempt failed: whether to try again, the reason (part of the API) and a sentence that says what to change.

    exit code ─ BY_CODE ─┐
    pod's facts ─────────┴─► Failure(retry: FREE | COUNTED | NEVER, reason, message)

FREE: the pod was taken away; nothing is wrong with it. COUNTED: it may pass the next time, spec.retry.maxRetries times.
SMALLER: it may pass with a smaller micro-batch. NEVER: the same inputs would fail the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from finetune_operator.finetunejob.observed import Attempt, Pod
from finetune_trainer.contract.reports import ExitCode

SIGTERM = 143  # the shell's number for a program that SIGTERM ended before it could handle it


class Retry(Enum):
    FREE = "Free"
    COUNTED = "Counted"
    SMALLER = "Smaller"
    NEVER = "Never"


@dataclass(frozen=True)
class Failure:
    retry: Retry
    reason: str
    message: str
    exit_code: int | None = None
    node: str | None = None


@dataclass(frozen=True)
class Rule:
    """What a code means where the pod could not say more itself."""

    retry: Retry
    reason: str
    message: str


BY_CODE: dict[int, Rule] = {
    ExitCode.UNEXPECTED: Rule(Retry.COUNTED, "UnexpectedError", "the program ended with an error; see the pod's log"),
    ExitCode.BAD_CONFIG: Rule(Retry.NEVER, "InvalidSpec", "the configuration can't be run; correct the spec"),
    ExitCode.BAD_DATA: Rule(Retry.NEVER, "InvalidDataset", "the dataset can't be used; correct it or spec.dataset"),
    ExitCode.SOURCE_NOT_FOUND: Rule(Retry.NEVER, "SourceNotFound", "the model or dataset does not exist; correct its uri"),
    ExitCode.SOURCE_DENIED: Rule(
        Retry.NEVER, "SourceDenied", "the model or dataset was denied; set secretRef to a Secret that may read it"
    ),
    ExitCode.SOURCE_UNAVAILABLE: Rule(Retry.COUNTED, "SourceUnavailable", "the source of the model or dataset did not answer"),
    ExitCode.STORE_UNAVAILABLE: Rule(
        Retry.COUNTED, "StoreUnavailable", "the artifact store did not answer, or is full; see spec.storage.artifacts"
    ),
    ExitCode.OUT_OF_GPU_MEMORY: Rule(
        Retry.SMALLER,
        "OutOfGpuMemory",
        "the GPU's memory is too small; lower spec.training.microBatchSize or maxLength, or take a larger GPU",
    ),
    ExitCode.DOES_NOT_FIT: Rule(
        Retry.NEVER,
        "DoesNotFit",
        "the job needs more GPU memory than there is; use QLoRA, lower spec.training.maxLength, or take a larger GPU",
    ),
    ExitCode.NON_FINITE_LOSS: Rule(
        Retry.NEVER, "NonFiniteLoss", "the loss became infinite or NaN; lower spec.training.learningRate or use BF16"
    ),
    ExitCode.HANG: Rule(Retry.COUNTED, "Hang", "no step ended for a long time"),
    ExitCode.VERIFICATION_FAILED: Rule(
        Retry.NEVER, "VerificationFailed", "the result does not agree with what it was made from; see the pod's log"
    ),
    ExitCode.LOST_RANK: Rule(Retry.COUNTED, "LostRank", "another rank of the attempt was lost"),
    ExitCode.WORLD_INCOMPLETE: Rule(Retry.COUNTED, "WorldIncomplete", "not all pods of the attempt came together"),
    ExitCode.PREEMPTED: Rule(Retry.FREE, "Preempted", "the pod was asked to stop and saved a checkpoint"),
    ExitCode.OUT_OF_MEMORY: Rule(Retry.COUNTED, "Killed", "the program was killed by the system"),
    SIGTERM: Rule(Retry.FREE, "Preempted", "the pod was asked to stop"),
}
RESULT_LOST = Rule(Retry.COUNTED, "ResultLost", "the step's report could not be read; prepare looks for its result")
JOB_DELETED = Rule(Retry.FREE, "JobDeleted", "the Job was deleted from outside")


def failure_of(attempt: Attempt, stage: str) -> Failure:
    """Why a failed attempt failed. `stage` is named in remedies: spec.stages.<stage>."""
    pod = attempt.pod
    if pod is None:
        return Failure(Retry.FREE, "PodDeleted", "the pod was deleted before it ended")
    rule = _outside_rule(pod, stage)
    if rule is None and pod.exit_code in BY_CODE:
        rule = BY_CODE[pod.exit_code]
    if rule is None and pod.exit_code is None:
        rule = Rule(Retry.FREE, "PodLost", "the pod vanished without an exit code")
    if rule is None:
        rule = Rule(Retry.COUNTED, "UnexpectedError", f"the program ended with exit code {pod.exit_code}; see its log")
    told = pod.termination.failure if pod.termination else None
    return Failure(
        rule.retry,
        told.reason if told else rule.reason,
        told.message if told else rule.message,
        pod.exit_code,
        pod.node,
    )


def _outside_rule(pod: Pod, stage: str) -> Rule | None:
    """What was done to the pod outweighs its exit code, unless it explained a failure of its own."""
    if pod.oom_killed:
        return Rule(Retry.COUNTED, "OutOfMemory", f"the pod used more memory than it may; raise spec.stages.{stage}.resources")
    if pod.removed == "Evicted" and "exceed" in pod.removal.lower():
        return Rule(
            Retry.COUNTED,
            "ScratchFull",
            f"the pod was evicted: {pod.removal}; raise spec.storage.scratch.size or its ephemeral-storage",
        )
    explained = pod.termination is not None and pod.termination.failure is not None
    if pod.removed is not None and not (explained and pod.exit_code != ExitCode.PREEMPTED):
        return Rule(Retry.FREE, f"Pod{pod.removed}" if pod.removed == "Deleted" else pod.removed, pod.removal or _GONE)
    return None


_GONE = "the pod was deleted before it ended"
