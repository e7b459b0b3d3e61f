"""What is read of a revision's Deployment, of its pods and of its gate: whole values from what the API server sends."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.api.modelserve import ModelServe, Revision
from finetune_operator.decision import Observed, Ref
from finetune_operator.meta import Object
from finetune_operator.modelserve.deployed import Container, Deployed, Pod
from finetune_operator.modelserve.observed import NUMBERS, Gate, Verdict, World, observe
from finetune_operator.names import LABEL_GATE, LABEL_REVISION
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import Failure, Termination

SERVE = ModelServe.model_validate(
    {
        "metadata": {"name": "bot", "namespace": "team", "uid": "u"},
        "spec": {"model": {"uri": "pvc://a/b"}, "engine": {"type": "VLLM"}},
    }
)
MINE = [{"kind": "ModelServe", "name": "bot", "uid": "u"}]
WRONG = Failure(reason="VerificationFailed", message="it said Paris")
BORN, BOUND = "2026-11-28T10:00:00Z", "2026-11-28T10:00:05Z"


def child(name: str, owners: list[Object] = MINE, labels: dict[str, str] | None = None, **rest: Any) -> Object:
    return {"metadata": {"name": name, "ownerReferences": owners, "labels": {LABEL_REVISION: "r1"} | (labels or {})}, **rest}


def pod(name: str, *containers: Object, **conditions: dict[str, str]) -> Object:
    listed = [{"type": kind, **condition} for kind, condition in conditions.items()]
    body = child(name, [], status={"phase": "Running", "conditions": listed, "containerStatuses": list(containers)})
    body["metadata"]["creationTimestamp"] = BORN
    return body


def world(**children: list[Object]) -> World:
    return observe(SERVE, Observed(children={kind: tuple(items) for kind, items in children.items()}, named={}))


def read(body: Object) -> Pod:
    (found,) = world(Deployment=[child("bot-r1", spec={})], Pod=[body]).deployed["r1"].pods
    return found


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, Pod("p", BORN, False)),
        ({"PodScheduled": {"status": "True", "lastTransitionTime": BOUND}, "Ready": {"status": "True"}}, Pod("p", BOUND, True)),
        ({"PodScheduled": {"status": "False", "lastTransitionTime": BOUND}}, Pod("p", BORN, False, "no node takes it")),
        ({"PodScheduled": {"status": "False", "reason": "SchedulingGated"}}, Pod("p", BORN, False, "SchedulingGated")),
        (
            {"PodScheduled": {"status": "False", "reason": "Unschedulable", "message": "no GPU"}},
            Pod("p", BORN, False, "no GPU"),
        ),
        ({"PodReadyToStartContainers": {"status": "False"}}, Pod("p", BORN, False, mounting=True)),
        ({"PodReadyToStartContainers": {"status": "True"}}, Pod("p", BORN, False)),
        (
            {"PodScheduled": {"status": "False", "message": "no GPU"}, "PodReadyToStartContainers": {"status": "False"}},
            Pod("p", BORN, False, "no GPU"),
        ),
    ],
)
def test_where_a_pod_stands(conditions: dict[str, dict[str, str]], expected: Pod) -> None:
    assert read(pod("p", **conditions)) == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"state": {"running": {}}}, Container("c")),
        ({"state": {"waiting": {"reason": "ContainerCreating", "message": "soon"}}}, Container("c")),
        ({"state": {"waiting": {"reason": "PodInitializing"}}}, Container("c")),
        ({"state": {"waiting": {"message": "soon"}}}, Container("c")),
        ({"state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}, Container("c", 0, "ImagePullBackOff", "no")),
        ({"state": {"waiting": {"reason": "CreateContainerError"}}}, Container("c", 0, "CreateContainerError")),
        ({"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}, Container("c")),
        (
            {
                "restartCount": 3,
                "state": {"running": {}},
                "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled", "startedAt": BORN, "finishedAt": BOUND}},
            },
            Container("c", 3, ended="OOMKilled", exit_code=137, ran_from=BORN, ran_to=BOUND),
        ),
        (
            {"state": {"terminated": {"exitCode": 1, "message": Termination(failure=WRONG).model_dump_json(by_alias=True)}}},
            Container("c", exit_code=1, failure=WRONG),
        ),
    ],
)
def test_how_a_container_stands(status: Object, expected: Container) -> None:
    assert read(pod("p", {"name": "c", **status})).containers == (expected,)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, {"current": True}),
        (
            {"readyReplicas": 2, "availableReplicas": 1, "observedGeneration": 7},
            {"ready": 2, "available": 1, "current": True},
        ),
        ({"conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]}, {"deadline_exceeded": True}),
        ({"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "quota"}]}, {"refused_pods": "quota"}),
        ({"conditions": [{"type": "ReplicaFailure", "status": "False", "message": "quota"}]}, {}),
        ({"conditions": [{"type": "ReplicaFailure", "status": "True"}]}, {}),
    ],
)
def test_a_revision_s_deployment(status: Object, expected: dict[str, Any]) -> None:
    body = child("bot-r1", spec={"replicas": 3}, status=status)
    left: dict[str, Any] = {"ready": 0, "available": 0, "current": True, "deadline_exceeded": False, "refused_pods": ""}
    gone = [pod("going") | {"status": {"phase": phase}} for phase in ("Failed", "Succeeded")]
    assert world(Deployment=[body], Pod=gone).deployed == {"r1": Deployed("r1", body, 3, **(left | expected))}


def test_a_pod_that_is_being_deleted_is_no_pod_of_its_revision() -> None:
    going = pod("going")
    going["metadata"]["deletionTimestamp"] = BORN
    (left,) = world(Deployment=[child("bot-r1", spec={})], Pod=[going, pod("stays")]).deployed["r1"].pods
    assert left.name == "stays"


def test_what_is_being_deleted_is_no_child_any_more() -> None:
    going = child("bot-r1", spec={})
    going["metadata"]["deletionTimestamp"] = BORN
    assert world(Deployment=[going]) == World()


def test_a_deployment_whose_controller_has_not_seen_it_is_not_current() -> None:
    body = child("bot-r1", spec={})
    body["metadata"]["generation"] = 2
    found = world(Deployment=[body | {"status": {"observedGeneration": 1}}]).deployed["r1"]
    assert (found.current, found.replicas) == (False, 1)


@pytest.mark.parametrize(
    ("ended", "exit_code", "expected"),
    [
        ({}, None, Gate("g", Verdict.RUNNING)),
        ({"type": "Failed", "status": "False"}, None, Gate("g", Verdict.RUNNING)),
        ({"type": "Complete", "status": "True"}, 0, Gate("g", Verdict.PASSED)),
        (
            {
                "type": "Failed",
                "status": "True",
                "reason": "BackoffLimitExceeded",
                "message": "m",
                "lastTransitionTime": BOUND,
            },
            ExitCode.VERIFICATION_FAILED,
            Gate("g", Verdict.FAILED, "BackoffLimitExceeded", "m", WRONG, BOUND),
        ),
        ({"type": "Failed", "status": "True", "reason": "x"}, 137, Gate("g", Verdict.UNKNOWN, "x", "", WRONG)),
    ],
)
def test_a_gate(ended: Object, exit_code: int | None, expected: Gate) -> None:
    job = child("g", status={"conditions": [ended] if ended else []})
    job["metadata"]["uid"] = "j"
    message = Termination(failure=WRONG).model_dump_json(by_alias=True) if exit_code else ""
    end = {"exitCode": exit_code, "message": message}
    asked = child("p", [{"kind": "Job", "name": "g", "uid": "j"}], {LABEL_GATE: "g"})
    asked |= {"status": {"containerStatuses": [{"name": "gate", "state": {"terminated": end}}]}}
    assert world(Job=[job], Pod=[asked] if exit_code is not None else []).gates == {"g": expected}


def test_each_number_that_a_pod_reports_has_its_field_in_status() -> None:
    assert NUMBERS.keys() <= Revision.model_fields.keys()
    assert set(NUMBERS.values()) <= Termination.model_fields.keys()


def test_the_service_tells_what_is_live() -> None:
    service = child("bot", spec={"selector": {LABEL_REVISION: "r1"}})
    found = [
        observe(SERVE, Observed(children={}, named={Ref("Service", "bot"): s})) for s in (service, child("bot", [], spec={}))
    ]
    assert [(w.live, w.stranger) for w in found] == [("r1", False), (None, True)]
