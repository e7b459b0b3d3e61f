"""What happens to a revision whose pods don't become ready, by what the pods say."""

from __future__ import annotations

from typing import Any

import pytest
from tests.serving import SPEC, Stage, make_serve

from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.decision import pause_after
from finetune_operator.modelserve.startup import Budget, budget
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

# name: (containers of the pod, seconds since it was created, reason, what follows)
CASES: dict[str, tuple[dict[str, Any], float, str, str]] = {
    "starting": (container(waiting="ContainerCreating"), 900, "Loading", "waits"),
    "out of memory": (container(restarts=1, reason="OOMKilled", exitCode=137, **SHORT), 10, "OutOfMemory", "refused"),
    "first crash": (container(restarts=1, reason="Error", exitCode=1, **SHORT), 10, "CrashLoopBackOff", "waits"),
    "third crash": (container(restarts=3, reason="Error", exitCode=1, **SHORT), 60, "CrashLoopBackOff", "refused"),
    "ended just now": (container(restarts=0, reason="Error", exitCode=1, **SHORT), 10, "Loading", "waits"),
    "too slow": (container(restarts=1, reason="Error", exitCode=137, **LONG), 1900, "StartupTimeout", "refused"),
    "registry hiccups": (container(waiting="ErrImagePull"), 30, "ImagePullBackOff", "waits"),
    "no such image": (container(waiting="ImagePullBackOff"), 130, "ImagePullBackOff", "stuck"),
    "missing secret key": (
        container(waiting="CreateContainerConfigError"),
        130,
        "CreateContainerConfigError",
        "stuck",
    ),
    "damaged model": (
        container("load", restarts=1, reason="Error", exitCode=24, message=report("ModelDamaged")),
        10,
        "ModelDamaged",
        "refused",
    ),
    "storage hiccups": (
        container("load", restarts=1, reason="Error", exitCode=15, message=report("StoreUnavailable")),
        10,
        "StoreUnavailable",
        "waits",
    ),
    "no name of an image": (container(waiting="InvalidImageName"), 10, "InvalidImageName", "refused"),
    "no name of an image, in other words": (container(waiting="ErrInvalidImageName"), 10, "ErrInvalidImageName", "refused"),
    "registry is slow": (container(waiting="ErrImagePull"), 119, "ImagePullBackOff", "waits"),
    "registry was slow": (container(waiting="ErrImagePull"), 120, "ImagePullBackOff", "stuck"),
    "third end of the loader": (
        container("load", restarts=3, reason="Error", exitCode=1, message=report("Unknown")),
        60,
        "Unknown",
        "refused",
    ),
    "second end of the loader": (
        container("load", restarts=2, reason="Error", exitCode=1, message=report("Unknown")),
        60,
        "Unknown",
        "waits",
    ),
    "storage is gone": (
        container("load", restarts=3, reason="Error", exitCode=15, message=report("StoreUnavailable")),
        60,
        "StoreUnavailable",
        "stuck",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("has_live", [False, True])
def test_pods_that_are_not_ready(case: str, has_live: bool) -> None:
    status, seconds, reason, follows = CASES[case]
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
    assert ("Stalled" in conditions, "Reconciling" in conditions) == (follows != "waits", follows == "waits")
    stage.step()
    assert stage.revisions() == {r for r in (live, None if follows == "refused" else revision) if r}
    assert stage.live() == live
    assert conditions["Available"][0] == ("True" if has_live else "False")


def test_no_node_for_the_pods_is_waited_for_without_an_end() -> None:
    stage = Stage()
    stage.step()
    revision = stage.candidate()
    stage.pod(revision, conditions=[UNSCHEDULABLE])
    stage.overdue(revision)
    stage.later(299)
    stage.step()
    assert stage.conditions()["Reconciling"] == ("True", "Unschedulable")
    stage.later(10**6)
    stage.step()
    assert stage.conditions()["Stalled"] == ("True", "Unschedulable"), "somebody should look"
    assert "no GPU" in stage.message()
    assert stage.revisions() == {revision}


@pytest.mark.parametrize(("count", "seconds"), [(None, 1800), (1, 600), (50_000_000_000, 2000)])
def test_a_large_model_may_take_as_long_as_its_bytes_do(count: int | None, seconds: int) -> None:
    spec = ModelServeSpec.model_validate(SPEC)
    model = ResolvedModel(source="uri", uri="pvc://models/q4", bytes=count)
    assert budget(spec, model) == Budget(load=seconds, start=seconds)


@pytest.mark.parametrize("turn", [1, -1])
def test_of_several_troubles_the_worst_is_told(turn: int) -> None:
    """Whatever the kubelet lists first: what the revision is refused for, then what somebody should look at."""
    away = container("load", restarts=3, reason="Error", exitCode=15, message=report("StoreUnavailable"))
    full = container(restarts=1, reason="OOMKilled", exitCode=137, **SHORT)
    soon = container("load", restarts=1, reason="Error", exitCode=1, message=report("Unknown"))
    for statuses, reason in (([away, full], "OutOfMemory"), ([soon, away], "StoreUnavailable")):
        stage = Stage()
        stage.step()
        stage.pod(stage.candidate(), containerStatuses=statuses[::turn])
        stage.step()
        assert stage.conditions()["Stalled"] == ("True", reason)


def test_a_deadline_that_nothing_else_explains_is_no_verdict() -> None:
    stage = Stage()
    stage.step()
    revision = stage.candidate()
    stage.overdue(revision)
    stage.step()
    assert stage.conditions()["Stalled"] == ("True", "NotReadyInTime")
    assert stage.revisions() == {revision}
    stage.available(revision)
    stage.step()
    assert stage.conditions()["Reconciling"] == ("True", "Gating")


def test_patience_counts_from_when_a_node_has_the_pod() -> None:
    stage = Stage()
    stage.step()
    stage.later(10**5)
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stage.stamp()}
    stage.pod(stage.candidate(), conditions=[placed], containerStatuses=[container(waiting="ErrImagePull")])
    stage.step()
    assert "Reconciling" in stage.conditions()
    stage.later(130)
    stage.step()
    assert stage.conditions()["Stalled"] == ("True", "ImagePullBackOff")


def test_a_secret_that_is_away_for_a_moment_takes_nothing_of_what_is_loaded_away() -> None:
    source = {"uri": "s3://models/facts", "secretRef": {"name": "s3"}}
    stage = Stage(make_serve(model=source))
    stage.put({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": "default"}})
    stage.step()
    revision = stage.candidate()
    secret = stage.objects.pop(("Secret", "s3"))
    stage.settle()
    assert stage.conditions()["Stalled"] == ("True", "SecretNotFound")
    assert stage.revisions() == {revision}
    stage.put(secret)
    stage.available(revision)
    stage.step()
    assert stage.conditions()["Reconciling"] == ("True", "Gating")


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
    assert stage.conditions()["Reconciling"] == ("True", "QuotaExceeded")
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


def test_a_gate_that_the_model_failed_is_a_verdict() -> None:
    stage = Stage(make_serve())
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate(Failure(reason="ModelNotServed", message="the engine serves a, not b"), "PodFailurePolicy")
    stage.step()
    assert stage.conditions()["Stalled"] == ("True", "ModelNotServed")
    stage.step()
    assert stage.revisions() == set()


# why a gate came to no verdict: its pod was evicted, its image could not be pulled, the engine was evicted under it
LOST: dict[str, tuple[Failure | None, str, str]] = {
    "evicted": (None, "BackoffLimitExceeded", "GateNotAsked"),
    "no image": (None, "DeadlineExceeded", "GateNotAsked"),
    "no engine": (Failure(reason="EngineUnavailable", message="can't be reached"), "BackoffLimitExceeded", "EngineUnavailable"),
}


@pytest.mark.parametrize("case", LOST)
def test_a_gate_without_a_verdict_is_asked_again_and_then_counts(case: str) -> None:
    failure, job_reason, reason = LOST[case]
    stage = Stage(make_serve())
    stage.step()
    revision = stage.candidate()
    stage.available(revision)
    stage.step()
    for lost in range(4):
        (job,) = stage.of("Job")
        stage.lose_gate(failure, job_reason)
        stage.step()
        assert stage.conditions()["Ready"] == ("False", reason)
        assert ("Stalled" in stage.conditions()) == (lost >= 2)
        assert stage.revisions() == {revision}
        stage.later(pause_after(lost + 1) - 1)
        assert stage.step().requeue_after == 1
        stage.later(1)
        stage.step()  # which asks: nothing else may wake it soon
        stage.settle()
        (again,) = stage.of("Job")
        assert again["metadata"]["name"] != job["metadata"]["name"]
    stage.finish_gate(None)
    stage.settle()
    assert stage.live() == revision
