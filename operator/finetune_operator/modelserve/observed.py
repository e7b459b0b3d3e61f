"""Deployments, Pods, gate Jobs and the Service, as the API server sends them, read once. Nothing else looks at raw children.

Service <name> ── selector ──► the live revision     (what serves is told by the cluster, not by a status that may be lost)
Deployment <name>-<revision> ─► Deployed             Job <name>-<revision>-gate-<trial> ─► Gate
ControllerRevision <name>-<revision> ─► how that Deployment was rendered
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pydantic import ValidationError

from finetune_operator.api.modelserve import ModelServe
from finetune_operator.decision import Observed, Ref
from finetune_operator.meta import Object
from finetune_operator.names import (
    ANNOTATION_MODEL_DIGEST,
    ANNOTATION_MODEL_URI,
    LABEL_GATE,
    LABEL_REVISION,
    object_name,
)
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reports import Failure, Termination
from finetune_trainer.contract.served_rows import ServedRows

USUAL_WAITING = frozenset({OperatorReason.ContainerCreating, "PodInitializing", ""})
OF_A_REVISION = ("Deployment", "Service", "Job", "ControllerRevision")
AROUND = ("NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget")
SAME_WAITING = {"ErrImagePull": "ImagePullBackOff"}  # the kubelet goes to and fro between the two


class Verdict(Enum):
    RUNNING = "Running"
    PASSED = "Passed"
    FAILED = "Failed"  # the model answered wrongly, or too late
    UNKNOWN = "Unknown"  # it was not asked: the gate's pod or the engine was taken away, or could not start


@dataclass(frozen=True)
class Gate:
    job: str
    verdict: Verdict
    reason: str = ""  # the Job's own word for its failure
    message: str = ""
    failure: Failure | None = None  # what the pod reported
    ended_at: str | None = None
    test_rows: ServedRows | None = None


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


@dataclass(frozen=True)
class Pod:
    name: str
    placed_at: str  # since when a node has it; until then, since when it is there
    ready: bool
    unschedulable: str = ""  # the scheduler's text
    mounting: bool = False  # bound to a node, but its sandbox or its volumes are not there yet
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
    def model_uri(self) -> str:
        return str(self.body["metadata"].get("annotations", {}).get(ANNOTATION_MODEL_URI, ""))

    @property
    def model_digest(self) -> str | None:
        found: str | None = self.body["metadata"].get("annotations", {}).get(ANNOTATION_MODEL_DIGEST)
        return found


@dataclass(frozen=True)
class World:
    """What exists of one ModelServe."""

    live: str | None = None  # the revision that the Service selects
    stranger: bool = False  # the Service of our name is somebody else's
    deployed: dict[str, Deployed] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)  # by the Job's name
    records: dict[str, Object] = field(default_factory=dict)  # the Deployment of each revision, as it was first rendered
    children: tuple[Object, ...] = ()  # all of ours that a revision may have
    around: tuple[Object, ...] = ()  # all of ours that belong to no revision: around.py


def observe(serve: ModelServe, observed: Observed) -> World:
    """Children of the ModelServe with this uid; those of an earlier one of the same name are being collected."""
    uid = serve.metadata.uid
    mine = {
        k: [o for o in v if _owner(o) == uid and "deletionTimestamp" not in o["metadata"]] for k, v in observed.children.items()
    }
    pods = observed.children.get("Pod", ())
    service = observed.named.get(Ref("Service", object_name(serve.metadata.name)))
    ours = service is not None and _owner(service) == uid
    return World(
        live=(service["spec"].get("selector") or {}).get(LABEL_REVISION) if service is not None and ours else None,
        stranger=service is not None and not ours,
        deployed={d.revision: d for d in (_deployed(o, pods) for o in mine.get("Deployment", []))},
        gates={o["metadata"]["name"]: _gate(o, pods) for o in mine.get("Job", [])},
        records={revision_of(o): o["data"] for o in mine.get("ControllerRevision", [])},
        children=tuple(o for kind in OF_A_REVISION for o in mine.get(kind, [])),
        around=tuple(o for kind in AROUND for o in mine.get(kind, [])),
    )


def revision_of(child: Object) -> str:
    """The revision that a child belongs to; the stable Service belongs to none."""
    return str(child["metadata"].get("labels", {}).get(LABEL_REVISION, ""))


def _owner(child: Object) -> str:
    owners = child["metadata"].get("ownerReferences") or []
    return next((str(o["uid"]) for o in owners if o["kind"] == "ModelServe"), "")


def _deployed(body: Object, pods: tuple[Object, ...]) -> Deployed:
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
            if p["metadata"].get("labels", {}).get(LABEL_REVISION) == revision
            and "deletionTimestamp" not in p["metadata"]
            and (p.get("status") or {}).get("phase") not in ("Failed", "Succeeded")  # evicted ones are replaced
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
        containers=containers,
    )


def _container(status: Object) -> Container:
    now, before = status.get("state") or {}, status.get("lastState") or {}
    waiting = now.get("waiting") or {}
    ended = now.get("terminated") or before.get("terminated") or {}
    if ended.get("exitCode") == 0:
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
        failure=_report(ended).failure,
    )


def _gate(job: Object, pods: tuple[Object, ...]) -> Gate:
    name = job["metadata"]["name"]
    ended = {c["type"]: c for c in (job.get("status") or {}).get("conditions") or [] if c.get("status") == "True"}
    if "Complete" not in ended and "Failed" not in ended:
        return Gate(name, Verdict.RUNNING)
    of_job = [p for p in pods if any(o["uid"] == job["metadata"]["uid"] for o in p["metadata"].get("ownerReferences") or [])]
    ends = [_ended(p) for p in of_job if LABEL_GATE in p["metadata"].get("labels", {})]
    reports = [_report(end) for end in ends]
    rows = next((r.served_rows for r in reversed(reports) if r.served_rows), None)
    if "Complete" in ended:
        return Gate(name, Verdict.PASSED, test_rows=rows)
    end, failure = ended["Failed"], next((r.failure for r in reversed(reports) if r.failure), None)
    judged = any(e.get("exitCode") == ExitCode.VERIFICATION_FAILED for e in ends)
    verdict = Verdict.FAILED if judged else Verdict.UNKNOWN
    return Gate(name, verdict, end.get("reason", ""), end.get("message", ""), failure, end.get("lastTransitionTime"), rows)


def _ended(pod: Object) -> dict[str, Any]:
    container: Object = next(iter((pod.get("status") or {}).get("containerStatuses") or []), {})
    found: dict[str, Any] = (container.get("state") or {}).get("terminated") or {}
    return found


def _report(ended: dict[str, Any]) -> Termination:
    """What our own programs report when they stop; engines report nothing."""
    try:
        return Termination.model_validate_json(ended.get("message") or "")
    except ValidationError:
        return Termination()
