"""The Deployment of a revision and its pods, as the API server sends them, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetune_operator.meta import Object, goes_on
from finetune_operator.names import ANNOTATION_MODEL_DIGEST, ANNOTATION_MODEL_URI, LABEL_REVISION
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reports import Failure, Termination

ENGINE = "engine"  # the container; whatever else is in the pod loads for it or was injected
USUAL_WAITING = frozenset({OperatorReason.ContainerCreating, "PodInitializing", ""})
SAME_WAITING = {"ErrImagePull": "ImagePullBackOff"}  # the kubelet goes to and fro between the two


@dataclass(frozen=True)
class Container:
    """One container of a pod: how it stands, and how it ended last."""

    name: str
    restarts: int = 0
    waiting: str = ""  # reason, unless it is usual
    waiting_message: str = ""
    ended: str = ""  # reason of the last end: Error, OOMKilled, …
    exit_code: int | None = None
    ran_from: str | None = None
    ran_to: str | None = None
    failure: Failure | None = None  # what it reported when it ended
    started: bool = False  # its startup probe has passed


@dataclass(frozen=True)
class Pod:
    name: str
    placed_at: str  # since when a node has it; until then, since when it is there
    ready: bool
    unschedulable: str = ""  # the scheduler's text
    mounting: bool = False  # bound to a node, but its sandbox or its volumes are not there yet
    ready_changed_at: str = ""  # when it became ready, or not ready
    containers: tuple[Container, ...] = ()


@dataclass(frozen=True)
class Deployed:
    """The Deployment of one revision and its pods."""

    revision: str
    body: Object
    replicas: int
    ready: int
    available: int
    current: bool  # its controller has seen the newest spec
    deadline_exceeded: bool
    refused_pods: str  # why no pod could be created: quota, Pod Security
    pods: tuple[Pod, ...] = ()

    @property
    def created_at(self) -> str:
        return str(self.body["metadata"].get("creationTimestamp", ""))

    @property
    def model_uri(self) -> str:
        return str(self.body["metadata"].get("annotations", {}).get(ANNOTATION_MODEL_URI, ""))

    @property
    def model_digest(self) -> str | None:
        found: str | None = self.body["metadata"].get("annotations", {}).get(ANNOTATION_MODEL_DIGEST)
        return found


def revision_of(child: Object) -> str:
    """The revision that a child belongs to; the stable Service belongs to none."""
    return str(child["metadata"].get("labels", {}).get(LABEL_REVISION, ""))


def engine_of(template: Object) -> Object:
    """The engine's container of a pod template; empty where there is none."""
    found: Object = next((c for c in template["spec"]["containers"] if c["name"] == ENGINE), {})
    return found


def deployed(body: Object, pods: tuple[Object, ...]) -> Deployed:
    meta, status, revision = body["metadata"], body.get("status") or {}, revision_of(body)
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    failure = conditions.get("ReplicaFailure") or {}
    return Deployed(
        revision=revision,
        body=body,
        replicas=body["spec"].get("replicas", 1),
        ready=status.get("readyReplicas", 0),
        available=status.get("availableReplicas", 0),
        current=status.get("observedGeneration", 0) >= meta.get("generation", 0),
        deadline_exceeded=(conditions.get("Progressing") or {}).get("reason") == "ProgressDeadlineExceeded",
        refused_pods=str(failure.get("message", "")) if failure.get("status") == "True" else "",
        pods=tuple(
            _pod(p)
            for p in pods
            if p["metadata"].get("labels", {}).get(LABEL_REVISION) == revision and goes_on(p)  # evicted ones are replaced
        ),
    )


def _pod(pod: Object) -> Pod:
    meta, status = pod["metadata"], pod.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    scheduled = conditions.get("PodScheduled") or {}
    waits = scheduled.get("status") == "False"
    containers = tuple(_container(c) for k in ("initContainerStatuses", "containerStatuses") for c in status.get(k) or [])
    return Pod(
        name=meta["name"],
        placed_at=(not waits and scheduled.get("lastTransitionTime")) or meta.get("creationTimestamp", ""),
        ready=(conditions.get("Ready") or {}).get("status") == "True",
        unschedulable=str(scheduled.get("message") or scheduled.get("reason") or "no node takes it") if waits else "",
        mounting=(conditions.get("PodReadyToStartContainers") or {}).get("status") == "False" and not waits,
        ready_changed_at=(conditions.get("Ready") or {}).get("lastTransitionTime", ""),
        containers=containers,
    )


def _container(status: Object) -> Container:
    now, before = status.get("state") or {}, status.get("lastState") or {}
    waiting = now.get("waiting") or {}
    ended = now.get("terminated") or before.get("terminated") or {}
    if ended.get("exitCode") == 0 and status["name"] != ENGINE:  # an engine whose liveness probe failed may end so, too
        ended = {}  # an init container that is done
    usual = waiting.get("reason", "") in USUAL_WAITING
    return Container(
        name=status["name"],
        restarts=status.get("restartCount", 0),
        waiting="" if usual else SAME_WAITING.get(waiting["reason"], waiting["reason"]),
        waiting_message="" if usual else waiting.get("message", ""),
        ended=ended.get("reason", ""),
        exit_code=ended.get("exitCode"),
        ran_from=ended.get("startedAt"),
        ran_to=ended.get("finishedAt"),
        failure=report(ended).failure,
        started=status.get("started") is True,
    )


def report(ended: dict[str, Any]) -> Termination:
    """What our own programs report when they stop; engines report nothing."""
    try:
        return Termination.model_validate_json(ended.get("message") or "")
    except ValidationError:
        return Termination()
