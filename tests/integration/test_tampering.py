"""What people do by hand to the objects that the operator made, with exactly the chart's rights: each is healed, or told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.integration.conftest import Operator, World
from tests.integration.fake_node import Ending, FakeNode, Pod
from tests.integration.test_crashes import PROGRAM, apply_facts, succeeded, trainer
from tests.integration.test_operator import condition, quiet
from tests.integration.test_rollout import apply_serve, good_engine
from tests.waiting import wait_until

from finetune_operator.names import FIELD_MANAGER, LABEL_JOB, LABEL_MANAGED_BY, LABEL_STEP
from finetune_operator.resources import RESOURCES

Object = dict[str, Any]
# One edit of each kind that a ModelServe has; a merge patch, so that a list is replaced whole.
EDITS: dict[str, Object] = {
    "Deployment": {"spec": {"progressDeadlineSeconds": 7}},
    "Service": {"spec": {"selector": {"app": "other"}, "ports": [{"name": "http", "port": 1}]}},
    "NetworkPolicy": {"spec": {"ingress": []}},
    "HorizontalPodAutoscaler": {"spec": {"maxReplicas": 9}},
    "PodDisruptionBudget": {"spec": {"maxUnavailable": 2}},
}
OF_THE_SERVER = ("clusterIP", "clusterIPs")


@dataclass(frozen=True)
class Children:
    """What the operator has made in a namespace."""

    world: World
    space: str

    def path(self, kind: str, name: str = "") -> str:
        return RESOURCES[kind].path(self.space, name)

    def names(self, kind: str) -> list[str]:
        query = f"?labelSelector={LABEL_MANAGED_BY}%3D{FIELD_MANAGER}"
        return [body["metadata"]["name"] for body in self.world.items(self.path(kind) + query)]

    def gist(self, kind: str, name: str) -> Object:
        """What we ask of an object; nothing where there is none."""
        body = self.world.get(self.path(kind, name)) or {"metadata": {}}
        spec = {k: v for k, v in body.get("spec", {}).items() if k not in OF_THE_SERVER}
        data = body.get("data") if kind == "ConfigMap" else None  # what is recorded again is as the API server has filled it
        return {"labels": body["metadata"].get("labels"), "spec": spec, "data": data}

    def wait_for(self, kind: str, name: str, wanted: Object) -> None:
        wait_until(f"{kind} {name} is as it was", lambda: self.gist(kind, name) == wanted)

    def patch(self, kind: str, name: str, change: Object) -> None:
        self.world.api.request("PATCH", self.path(kind, name), change, "application/merge-patch+json")

    def delete(self, kind: str, name: str) -> None:
        self.world.api.request("DELETE", self.path(kind, name), {"propagationPolicy": "Background"})


def test_every_child_of_what_serves_is_put_back(world: World, operators: Callable[..., Operator]) -> None:
    space = world.namespace("handmade")
    made = Children(world, space)
    path = apply_serve(world, space, autoscaling={"minReplicas": 2, "maxReplicas": 3, "metric": "WaitingRequests"})
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    with FakeNode(world.api, space, good_engine):
        wait_until(
            "it serves with two pods", lambda: made.names("PodDisruptionBudget") and condition(world, path, "Ready") == "True"
        )
        quiet(operator)
        touched = [(kind, name) for kind in (*EDITS, "ControllerRevision") for name in made.names(kind)]
        assert {kind for kind, _ in touched} == {*EDITS, "ControllerRevision"}
        for kind, name in touched:
            wanted = made.gist(kind, name)
            if (edit := EDITS.get(kind)) is not None:
                made.patch(kind, name, edit)
                made.wait_for(kind, name, wanted)
            made.delete(kind, name)
            made.wait_for(kind, name, wanted)
        wait_until("it serves again", lambda: condition(world, path, "Ready") == "True")
        quiet(operator)
        apply_serve(world, space, replicas=1, network={"policy": False})
        around = ("NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget")
        wait_until("what stands around it is gone", lambda: not any(made.names(kind) for kind in around))
    assert operator.refusals() == []


def test_what_is_taken_from_a_job_at_work_is_put_back_or_told(world: World, operators: Callable[..., Operator]) -> None:
    space = world.namespace("handled")
    made, ends = Children(world, space), trainer(world, space)
    path = apply_facts(world, space)
    free: list[str] = ["prepare"]

    def ending(pod: Pod) -> Ending | None:
        return ends(pod) if pod["metadata"]["labels"][LABEL_STEP] in free or "*" in free else None

    def job() -> str:
        """The Job of training that is at work, as the status tells, once it was seen."""
        steps = world.read(path).get("status", {}).get("steps", [])
        at_work = (s for s in steps if s["name"] == "train" and s["state"] == "Running" and s.get("jobUid"))
        return str(next(at_work, {"job": ""})["job"])

    def reason() -> str:
        return str(next(c["reason"] for c in world.read(path)["status"]["conditions"] if c["type"] == "Ready"))

    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    with FakeNode(world.api, space, ending):
        first = wait_until("it trains", job)
        (run,) = made.names("ConfigMap")
        wanted = made.gist("ConfigMap", run)
        made.delete("ConfigMap", run)
        made.wait_for("ConfigMap", run, wanted)

        made.patch("Job", first, {"spec": {"suspend": True}})
        wait_until("it is told who suspended it", lambda: reason() == "JobSuspended")
        made.patch("Job", first, {"spec": {"suspend": False}})
        wait_until("it goes on", lambda: reason() == "Training")

        made.delete("Job", first)
        second = wait_until("another attempt has begun", lambda: job() if job() != first else "")
        wait_until("its pod runs", lambda: any(p["status"]["phase"] == "Running" for p in world.items(made.path("Pod"))))
        made.patch("Job", second, {"metadata": {"labels": {LABEL_MANAGED_BY: None, LABEL_JOB: None}}})
        wait_until("it waits for the pod of the Job that it can't tell of any more", lambda: reason() == "Stopping")
        assert [n for n in made.names("Job") if "-train-" in n] == [], "at most one is at work"
        free.append("*")
        wait_until("it has succeeded all the same", lambda: succeeded(world, path), 120)
    assert operator.refusals() == []
