"""Deployments, Pods, gate Jobs and the Service, as the API server sends them, read once. Nothing else looks at raw children.

Service <name> ── selector ──► the live revision     (what serves is told by the cluster, not by a status that may be lost)
               └─ its history, where it is shared with a candidate
Deployment <name>-<revision> ─► Deployed             Job <name>-<revision>-gate-<trial> ─► Gate
ControllerRevision <name>-<revision> ─► how that Deployment was rendered
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from finetune_operator.api.modelserve import ModelServe, RouteStatus
from finetune_operator.decision import Observed, Ref
from finetune_operator.meta import Object, has_ended
from finetune_operator.modelserve import history, route
from finetune_operator.modelserve.deployed import Deployed, deployed, report, revision_of
from finetune_operator.modelserve.history import History
from finetune_operator.names import ANNOTATION_HISTORY, LABEL_GATE, LABEL_GATEWAY, LABEL_REVISION, object_name, serve_labels
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.fields import Report
from finetune_trainer.contract.reports import Failure, Termination

OF_A_REVISION = ("Deployment", "Service", "Job", "ControllerRevision")
# A Revision's fields, and the report's.
NUMBERS = {
    "test_rows": "served_rows",
    "speed": "served_speed",
    "held_out": "held_out",
    "judged": "judged",
    "traffic": "traffic",
}
AROUND = ("NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget", "HTTPRoute")


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
    numbers: Mapping[str, Report] = field(default_factory=dict)  # by field of Revision


@dataclass(frozen=True)
class World:
    """What exists of one ModelServe."""

    live: str | None = None  # the revision that the Service selects
    stranger: bool = False  # the Service of our name is somebody else's
    deployed: dict[str, Deployed] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)  # by the Job's name
    history: History = ()  # of the revisions that took traffic
    records: dict[str, Object] = field(default_factory=dict)  # the Deployment of each revision, as it was first rendered
    children: tuple[Object, ...] = ()  # all of ours that a revision may have
    around: tuple[Object, ...] = ()  # all of ours that belong to no revision: around.py
    taking: frozenset[str] = frozenset()  # revisions that Service and route lead to
    gateway: int = 0  # pods of the gateway that are available
    gateway_pods: int = 0  # pods of it that are there, those that end among them
    route: RouteStatus | None = None  # how the route stands that the spec asks for
    may_route: bool = True  # whether there is such a kind, and its name is ours


def observe(serve: ModelServe, observed: Observed) -> World:
    """Children of the ModelServe with this uid; those of an earlier one of the same name are being collected."""
    uid = serve.metadata.uid
    mine = {
        k: [o for o in v if _owner(o) == uid and "deletionTimestamp" not in o["metadata"]] for k, v in observed.children.items()
    }
    pods = observed.children.get("Pod", ())
    service = observed.named.get(Ref("Service", object_name(serve.metadata.name)))
    ours = service is not None and (_owner(service) == uid or _was_made_for(service, serve.metadata.name))
    notes = (service["metadata"].get("annotations") or {}) if service is not None and ours else {}
    selector = _selector(service) if service is not None and ours else {}
    told, found = history.read(notes.get(ANNOTATION_HISTORY, "")), [o for o in mine.get("Deployment", []) if not _of_gateway(o)]
    routes, gateway = mine.get("HTTPRoute", []), [o for kind in OF_A_REVISION for o in mine.get(kind, []) if _of_gateway(o)]
    obstacle = route.obstacle(serve, observed, routes)
    return World(
        live=selector.get(LABEL_REVISION) or next((p.revision for p in told), None),
        history=told,
        stranger=service is not None and not ours,
        deployed={d.revision: d for d in (deployed(o, pods) for o in found)},
        taking=frozenset(
            [
                *_selected(serve, selector, found),
                *(revision for o in gateway if o["kind"] == "Service" for revision in _selected(serve, _selector(o), found)),
                *route.revisions(serve, routes, found),
            ]
        ),
        gateway=sum((o.get("status") or {}).get("availableReplicas", 0) for o in gateway if o["kind"] == "Deployment"),
        gateway_pods=sum(_of_gateway(pod) for pod in pods),
        route=None if serve.spec.route is None else obstacle or route.standing(serve.spec.route, routes),
        may_route=obstacle is None,
        gates={o["metadata"]["name"]: _gate(o, pods) for o in mine.get("Job", [])},
        records={revision_of(o): o["data"] for o in mine.get("ControllerRevision", [])},
        children=tuple(o for kind in OF_A_REVISION for o in mine.get(kind, []) if not _of_gateway(o)),
        around=(*(o for kind in AROUND for o in mine.get(kind, [])), *gateway),
    )


def _of_gateway(child: Object) -> bool:
    return LABEL_GATEWAY in (child["metadata"].get("labels") or {})


def _selector(service: Object) -> dict[str, str]:
    return service["spec"].get("selector") or {}


def _selected(serve: ModelServe, selector: dict[str, str], deployments: Sequence[Object]) -> list[str]:
    """The revision that the Service selects, or all where it is shared."""
    if selector == serve_labels(serve.metadata.name):
        return [revision_of(o) for o in deployments]
    return [selector[LABEL_REVISION]] if LABEL_REVISION in selector else []


def _was_made_for(service: Object, name: str) -> bool:
    """Whether it is ours by its labels, and only its owner was taken off, as a backup that is restored does."""
    meta = service["metadata"]
    return not meta.get("ownerReferences") and serve_labels(name).items() <= (meta.get("labels") or {}).items()


def _owner(child: Object) -> str:
    owners = child["metadata"].get("ownerReferences") or []
    return next((str(o["uid"]) for o in owners if o["kind"] == "ModelServe"), "")


def _gate(job: Object, pods: tuple[Object, ...]) -> Gate:
    name = job["metadata"]["name"]
    if not has_ended(job):
        return Gate(name, Verdict.RUNNING)
    ended = {c["type"]: c for c in job["status"]["conditions"] if c["status"] == "True"}
    of_job = [p for p in pods if any(o["uid"] == job["metadata"]["uid"] for o in p["metadata"].get("ownerReferences") or [])]
    ends = [_ended(p) for p in of_job if LABEL_GATE in p["metadata"].get("labels", {})]
    reports = [report(end) for end in ends]
    numbers = _numbers(reports)
    if "Complete" in ended:
        return Gate(name, Verdict.PASSED, numbers=numbers)
    end, failure = ended["Failed"], next((r.failure for r in reversed(reports) if r.failure), None)
    judged = any(e.get("exitCode") == ExitCode.VERIFICATION_FAILED for e in ends)
    verdict = Verdict.FAILED if judged else Verdict.UNKNOWN
    return Gate(name, verdict, end.get("reason", ""), end.get("message", ""), failure, end.get("lastTransitionTime"), numbers)


def _numbers(reports: Sequence[Termination]) -> dict[str, Report]:
    """What a gate's pods have counted and measured; the last one has the word."""
    found = {name: [told for r in reports if (told := getattr(r, told_as))] for name, told_as in NUMBERS.items()}
    return {name: told[-1] for name, told in found.items() if told}


def _ended(pod: Object) -> dict[str, Any]:
    container: Object = next(iter((pod.get("status") or {}).get("containerStatuses") or []), {})
    found: dict[str, Any] = (container.get("state") or {}).get("terminated") or {}
    return found
