"""Jobs and Pods, as the API server sends them, read once into attempts at steps. Nothing else looks at raw children.

A pod's state is that of our container in it: others may have been injected, before ours or behind it. A pod that should
have been gone for a minute is on a node that does not answer, and counts as gone.

Job (labels: run, step, attempt) ─┐
Pods (owned by that Job) ─────────┴─► Attempt(state, pod: exit code, termination, waiting reason, why it went away)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from pydantic import ValidationError

from finetune_operator.decision import Observed
from finetune_operator.meta import ENDED, Object, seconds_since, stamp
from finetune_operator.names import ANNOTATION_SUSPENDED, LABEL_ATTEMPT, LABEL_QUEUE, LABEL_RUN, LABEL_STEP, STEP_CONTAINER
from finetune_trainer.contract.exits import CONSEQUENCES
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reports import Progress, Termination

UNSEEN_SECONDS = 45  # behind the end of a Job: a watch of pods that was cut goes on after 30 s at most
LOST_SECONDS = 60  # behind the end of a deleted pod's grace: no kubelet has confirmed it
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
# A container that waits for these is on its normal way; anything else is worth showing.
LATEST = 4e9  # seconds since the epoch: the year 2096
USUAL_WAITING = frozenset({OperatorReason.ContainerCreating, "PodInitializing", ""})


class State(Enum):
    ACTIVE = "Active"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class Waiting:
    """Why a pod has not started: Unschedulable, ImagePullBackOff, CreateContainerConfigError, …"""

    reason: str
    message: str


@dataclass(frozen=True)
class Pod:
    name: str
    job_uid: str
    index: int  # among the pods of its Job
    live: bool  # its container may still write: not ended, not lost
    node: str | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    termination: Termination | None = None
    waiting: Waiting | None = None
    pending_since: str | None = None  # its container has not started yet
    removed: str | None = None  # why it was taken away from outside: Deleted, Evicted, Preempted, …
    removal: str = ""  # what Kubernetes says about that
    started_at: str | None = None
    finished_at: str | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Attempt:
    run: str
    step: str
    number: int
    job: str
    uid: str
    state: State
    suspended: bool
    suspended_by_us: bool  # one write suspends a Job and says so on it: a status may be lost
    deleting: bool
    pending: bool  # no pod of it has started yet
    admitted_at: str | None  # since when its pods may start
    queue: str | None  # Kueue's, which alone resumes it
    left_behind: bool  # its Job has not ended, though all that its pods were to do has
    pod: Pod | None  # of several, the one that tells most
    running_pods: int
    started_at: str | None
    finished_at: str | None

    def ended_at(self, now: datetime) -> str:
        """When its pods ended; now where nobody told, or where a node's clock is ahead."""
        return min(self.finished_at or stamp(now), stamp(now))


@dataclass(frozen=True)
class World:
    """All attempts of all runs that still have a Job, and all pods that may still be at work."""

    attempts: tuple[Attempt, ...] = ()
    live_pods: tuple[Pod, ...] = ()

    def attempt(self, job: str | None) -> Attempt | None:
        return next((a for a in self.attempts if a.job == job), None)


def observe(observed: Observed, owner_uid: str, now: datetime) -> World:
    """Children of the job with this uid. Pods of an earlier job of the same name count only as live."""
    listed = [p for p in observed.children.get("Pod", ()) if LABEL_STEP in p["metadata"].get("labels", {})]
    pods = tuple(_pod(p, observed.progress.get(p["metadata"]["name"]), now) for p in listed)
    newest = {(p.job_uid, p.index): p for p in sorted(pods, key=lambda p: p.started_at or "")}  # of a resumed Job
    jobs = [j for j in observed.children.get("Job", ()) if _owner(j, "FineTuneJob") == owner_uid]
    attempts = tuple(_attempt(j, [p for p in newest.values() if p.job_uid == j["metadata"]["uid"]], now) for j in jobs)
    return World(attempts, tuple(p for p in pods if p.live))


def most_telling(pods: Sequence[Pod]) -> Pod | None:
    """The pod whose state is the attempt's: the first cause of a failure, what keeps it from starting, who reports."""
    return min(pods, key=_tells, default=None)


def _tells(pod: Pod) -> tuple[int, int, int]:
    consequence = CONSEQUENCES.index(pod.exit_code) + 1 if pod.exit_code in CONSEQUENCES else 0
    if pod.oom_killed or pod.removed not in (None, "Deleted"):
        consequence = 0
    if pod.exit_code:
        return 0, consequence, pod.index
    if pod.waiting is not None or pod.pending_since is not None:
        return 1, pod.waiting is None, pod.index
    reports = pod.progress is not None or (pod.termination is not None and pod.termination.result is not None)
    return 2, not reports, pod.index


def _owner(child: Object, kind: str) -> str:
    owners = child["metadata"].get("ownerReferences") or []
    return next((o["uid"] for o in owners if o["kind"] == kind), "")


def _attempt(job: Object, pods: Sequence[Pod], now: datetime) -> Attempt:
    meta, spec, status = job["metadata"], job.get("spec", {}), job.get("status") or {}
    ended = {c["type"]: c for c in status.get("conditions") or [] if c.get("status") == "True"}
    end = ended.get("Complete") or ended.get("Failed")
    state = State.SUCCEEDED if "Complete" in ended else State.FAILED if "Failed" in ended else State.ACTIVE
    pod = most_telling(pods)
    unseen = end is not None and not pods and seconds_since(end["lastTransitionTime"], now) < UNSEEN_SECONDS
    if any(p.live for p in pods) or (state is State.SUCCEEDED and unseen):
        state = State.ACTIVE  # pods and Jobs are not read at the same moment: wait until the pod's report is seen too
    left_behind = state is State.ACTIVE and bool(pods) and all(_is_over(p, now) for p in pods)
    if left_behind:
        state = State.SUCCEEDED if all(p.exit_code == 0 for p in pods) else State.FAILED
    labels = meta.get("labels", {})
    return Attempt(
        run=labels.get(LABEL_RUN, ""),
        step=labels.get(LABEL_STEP, ""),
        number=_number(labels.get(LABEL_ATTEMPT)),
        job=meta["name"],
        uid=meta["uid"],
        state=state,
        suspended=bool(spec.get("suspend")),
        suspended_by_us=bool(spec.get("suspend")) and ANNOTATION_SUSPENDED in (meta.get("annotations") or {}),
        deleting="deletionTimestamp" in meta,
        pending=state is State.ACTIVE and not spec.get("suspend") and all(p.pending_since is not None for p in pods),
        admitted_at=status.get("startTime"),
        queue=labels.get(LABEL_QUEUE),
        left_behind=left_behind,
        pod=pod,
        running_pods=sum(p.live and p.pending_since is None for p in pods),
        started_at=(pod and pod.started_at) or status.get("startTime"),
        finished_at=(pod and pod.finished_at) or (end and end.get("lastTransitionTime")),
    )


def _pod(pod: Object, progress: dict[str, Any] | None, now: datetime) -> Pod:
    meta, status = pod["metadata"], pod.get("status") or {}
    ours = [c for c in status.get("containerStatuses") or [] if c.get("name") == STEP_CONTAINER]
    container: Object = next(iter(ours), {})
    ended = (container.get("state") or {}).get("terminated") or {}
    phase = status.get("phase", "Pending")
    lost = phase not in ENDED and not ended and _is_lost(meta, now)
    return Pod(
        name=meta["name"],
        job_uid=_owner(pod, "Job"),
        index=_number((meta.get("annotations") or {}).get(COMPLETION_INDEX)),
        live=phase not in ENDED and not ended and not lost,
        node=pod.get("spec", {}).get("nodeName"),
        exit_code=ended.get("exitCode"),
        oom_killed=ended.get("reason") == "OOMKilled",
        termination=_termination(ended.get("message")),
        waiting=_waiting(status, container) if phase == "Pending" else None,
        pending_since=status.get("startTime") or meta.get("creationTimestamp") if phase == "Pending" else None,
        removed=OperatorReason.NodeLost if lost else _removed(meta, status),
        removal="its node does not answer" if lost else _removal(status),
        started_at=ended.get("startedAt") or status.get("startTime"),
        finished_at=ended.get("finishedAt"),
        progress=_progress(progress),
    )


def _termination(message: str | None) -> Termination | None:
    """What the pod reported; None where it reported nothing that can be read (killed, cut off, another program)."""
    try:
        return Termination.model_validate_json(message or "")
    except ValidationError:
        return None


def _number(text: str | None) -> int:
    """What a label or an annotation counts: anybody may write there, so what is no number is 0."""
    return int(text) if text is not None and re.fullmatch("[0-9]{1,9}", text) else 0


def _progress(line: dict[str, Any] | None) -> Progress | None:
    """What a running pod said last; a time that no clock shows is none."""
    try:
        said = None if line is None else Progress.model_validate(line)
    except ValidationError:
        return None
    return said if said is None or 0 <= said.time < LATEST else said.model_copy(update={"time": 0.0})


def _waiting(status: Object, container: Object) -> Waiting | None:
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Waiting(condition.get("reason", OperatorReason.Unschedulable), condition.get("message", ""))
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason = waiting.get("reason", "")
    return None if reason in USUAL_WAITING else Waiting(reason, waiting.get("message", ""))


def _is_over(pod: Pod, now: datetime) -> bool:
    """Whether nothing of ours is at work in a pod any more: it is lost, or only a container that was injected keeps it."""
    if pod.removed == OperatorReason.NodeLost:
        return True
    return pod.finished_at is not None and seconds_since(pod.finished_at, now) > LOST_SECONDS


def _is_lost(meta: Object, now: datetime) -> bool:
    """Whether a pod that is to go has not gone, though its grace is over for a while."""
    until = meta.get("deletionTimestamp")  # the API server sets it to the end of the grace
    return until is not None and seconds_since(until, now) > LOST_SECONDS


def _removed(meta: Object, status: Object) -> str | None:
    """Reason of a pod that did not end by its own doing. Evicted and the like are the kubelet's words."""
    for condition in status.get("conditions") or []:
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return str(condition.get("reason", "Deleted"))
    if status.get("reason"):
        return str(status["reason"])
    return "Deleted" if "deletionTimestamp" in meta else None


def _removal(status: Object) -> str:
    for condition in status.get("conditions") or []:
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return str(condition.get("message", ""))
    return str(status.get("message") or "")
