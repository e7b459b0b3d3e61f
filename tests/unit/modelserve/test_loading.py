"""What happens to a revision whose pods don't become ready, by what the pods say."""

from __future__ import annotations

from typing import Any

import pytest
from tests.serving import Stage, make_serve

from finetune_trainer.contract.reports import Failure, Termination


def container(name: str = "engine", restarts: int = 0, waiting: str = "", **ended: Any) -> dict[str, Any]:
    status: dict[str, Any] = {"name": name, "restartCount": restarts, "state": {}, "lastState": {}}
    if waiting:
        status["state"] = {"waiting": {"reason": waiting, "message": "the kubelet's words"}}
    if ended:
        status["lastState"] = {"terminated": ended}
    return status


def report(reason: str) -> str:
    return Termination(failure=Failure(reason=reason, message="q4.gguf was changed")).model_dump_json(by_alias=True)


LONG = {"startedAt": "2026-11-23T15:00:00Z", "finishedAt": "2026-11-23T15:31:00Z"}
SHORT = {"startedAt": "2026-11-23T15:00:00Z", "finishedAt": "2026-11-23T15:00:09Z"}
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no GPU"}

# name: (containers of the pod, seconds since it was created, reason, refused)
CASES: dict[str, tuple[dict[str, Any], float, str, bool]] = {
    "starting": (container(waiting="ContainerCreating"), 900, "Loading", False),
    "out of memory": (container(restarts=1, reason="OOMKilled", exitCode=137, **SHORT), 10, "OOMKilled", True),
    "first crash": (container(restarts=1, reason="Error", exitCode=1, **SHORT), 10, "CrashLoopBackOff", False),
    "third crash": (container(restarts=3, reason="Error", exitCode=1, **SHORT), 60, "CrashLoopBackOff", True),
    "too slow": (container(restarts=1, reason="Error", exitCode=137, **LONG), 1900, "StartupTimeout", True),
    "registry hiccups": (container(waiting="ErrImagePull"), 30, "ImagePullBackOff", False),
    "no such image": (container(waiting="ImagePullBackOff"), 130, "ImagePullBackOff", True),
    "missing secret key": (
        container(waiting="CreateContainerConfigError"),
        130,
        "CreateContainerConfigError",
        True,
    ),
    "damaged model": (
        container("load", restarts=1, reason="Error", exitCode=24, message=report("ModelDamaged")),
        10,
        "ModelDamaged",
        True,
    ),
    "storage hiccups": (
        container("load", restarts=1, reason="Error", exitCode=15, message=report("StoreUnavailable")),
        10,
        "StoreUnavailable",
        False,
    ),
    "storage is gone": (
        container("load", restarts=3, reason="Error", exitCode=15, message=report("StoreUnavailable")),
        60,
        "StoreUnavailable",
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("has_live", [False, True])
def test_pods_that_are_not_ready(case: str, has_live: bool) -> None:
    status, seconds, reason, refused = CASES[case]
    stage = Stage()
    live = stage.roll_out() if has_live else None
    stage.edit(model={"uri": "pvc://models/next"})
    stage.step()
    revision = stage.candidate()
    kind = "initContainerStatuses" if status["name"] == "load" else "containerStatuses"
    stage.pod(revision, **{kind: [status]})
    stage.later(seconds)
    stage.step()
    conditions = stage.conditions()
    assert conditions["Ready"] == ("False", reason), stage.message()
    assert ("Stalled" in conditions, "Reconciling" in conditions) == (refused, not refused)
    stage.step()
    assert stage.revisions() == {r for r in (live, None if refused else revision) if r}
    assert stage.live() == live
    assert conditions["Available"][0] == ("True" if has_live else "False")


def test_no_node_for_the_pods_is_waited_for_without_an_end() -> None:
    stage = Stage()
    stage.step()
    revision = stage.candidate()
    stage.pod(revision, conditions=[UNSCHEDULABLE])
    stage.overdue(revision)
    stage.later(10**6)
    stage.step()
    assert stage.conditions()["Reconciling"] == ("True", "Unschedulable")
    assert "no GPU" in stage.message()
    assert stage.revisions() == {revision}


def test_deadline_ends_what_nothing_else_explains() -> None:
    stage = Stage()
    stage.step()
    stage.overdue(stage.candidate())
    stage.step()
    assert stage.conditions()["Stalled"] == ("True", "StartupTimeout")


def test_volume_that_does_not_come_is_told() -> None:
    stage = Stage()
    stage.step()
    waits = {"type": "PodReadyToStartContainers", "status": "False"}
    stage.pod(stage.candidate(), conditions=[waits])
    decision = stage.step()
    assert stage.conditions()["Reconciling"] == ("True", "Loading")
    assert decision.requeue_after is not None
    stage.later(decision.requeue_after)
    stage.step()
    assert stage.conditions()["Reconciling"] == ("True", "ContainerCreating")
    assert "ReadWriteOnce" in stage.message()


def test_pods_that_may_not_be_created_are_told() -> None:
    stage = Stage()
    stage.step()
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: pods"}
    stage.deployment(stage.candidate())["status"] = {"conditions": [failure]}
    stage.step()
    assert stage.conditions()["Reconciling"] == ("True", "FailedCreate")
    assert "exceeded quota" in stage.message()


def test_live_revision_that_breaks_is_told_and_kept() -> None:
    stage = Stage()
    live = stage.roll_out()
    stage.available(live, 0)
    stage.pod(live, containerStatuses=[container(restarts=5, reason="Error", exitCode=1, **SHORT)])
    stage.step()
    conditions = stage.conditions()
    assert conditions["Stalled"] == ("True", "CrashLoopBackOff")
    assert conditions["Available"] == ("False", "NoPods")
    assert stage.revisions() == {live}
    stage.available(live)
    stage.settle()
    assert stage.conditions() == {"Ready": ("True", "Serving"), "Available": ("True", "Answering")}


@pytest.mark.parametrize(
    ("failure", "job_reason", "reason"),
    [
        (Failure(reason="ModelNotServed", message="the engine serves a, not b"), "PodFailurePolicy", "ModelNotServed"),
        (None, "DeadlineExceeded", "GateTimeout"),
        (None, "BackoffLimitExceeded", "GateFailed"),
    ],
)
def test_gates_that_fail(failure: Failure | None, job_reason: str, reason: str) -> None:
    stage = Stage(make_serve())
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    if failure is not None:
        stage.finish_gate(failure, job_reason)
    else:
        (job,) = stage.of("Job")
        job["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": job_reason}]}
    stage.step()
    assert stage.conditions()["Stalled"] == ("True", reason)
