"""ModelServe on a real API server with the real Deployment and Job controllers; only the node is played."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from localcluster.api import ApiError
from tests.integration.conftest import FINETUNE, Operator, World
from tests.integration.test_operator import quiet
from tests.waiting import wait_until

from finetune_operator.names import LABEL_GATE, LABEL_REVISION
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import Failure, Termination

Operators = Callable[..., Operator]
WRONG = Termination(failure=Failure(reason="GateFailed", message="prompt 1 of 1 got an empty answer"))


class ServingNode:
    """Makes engines' pods ready and ends gates' pods as the test says."""

    def __init__(self, world: World, namespace: str) -> None:
        self._world = world
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.gate: Termination | None = Termination()  # what gates report; None lets them run

    def __enter__(self) -> ServingNode:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            for pod in self._world.items(self._pods):
                status = self._status(pod)
                if status is None or pod["status"]["phase"] not in ("Pending", "Running"):
                    continue
                path = f"{self._pods}/{pod['metadata']['name']}/status"
                try:
                    self._world.api.request("PATCH", path, {"status": status}, "application/merge-patch+json")
                except ApiError as error:
                    if error.code != 404:
                        raise

    def _status(self, pod: dict[str, Any]) -> dict[str, Any] | None:
        labels, created = pod["metadata"]["labels"], pod["metadata"]["creationTimestamp"]
        if LABEL_REVISION in labels:
            if pod["status"]["phase"] == "Running":
                return None
            ready = [{"type": t, "status": "True", "lastTransitionTime": created} for t in ("Ready", "ContainersReady")]
            return {"phase": "Running", "conditions": ready}
        if LABEL_GATE not in labels or self.gate is None:
            return None
        code = int(ExitCode.VERIFICATION_FAILED) if self.gate.failure else 0
        ended = {"exitCode": code, "message": self.gate.model_dump_json(), "startedAt": created, "finishedAt": created}
        container = {"name": "ask", "image": "none", "imageID": "", "ready": False, "restartCount": 0}
        phase = "Failed" if code else "Succeeded"
        return {"phase": phase, "containerStatuses": [{**container, "state": {"terminated": ended}}]}


def apply_serve(world: World, space: str, **spec: Any) -> str:
    """A ModelServe and its claim; returns its path."""
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}}
    size = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    world.api.apply(f"/api/v1/namespaces/{space}/persistentvolumeclaims/models", claim | {"spec": size})
    path = f"{FINETUNE}/namespaces/{space}/modelserves/facts"
    body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "ModelServe", "metadata": {"name": "facts"}}
    fields = {"model": {"uri": "pvc://models/one"}, "engine": {"type": "LlamaCpp"}, "parallelism": {"gpus": False}}
    world.api.apply(path, body | {"spec": {**fields, **spec}})
    return path


def status(world: World, path: str) -> dict[str, Any]:
    """Status of the object, once the operator has seen its newest spec."""
    body = world.get(path)
    assert body is not None
    found: dict[str, Any] = body["status"]
    return found if found["observedGeneration"] == body["metadata"]["generation"] else {}


def is_true(world: World, path: str, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in status(world, path).get("conditions", []))


def selected(world: World, space: str) -> str:
    """The revision that the stable Service selects."""
    service = world.get(f"/api/v1/namespaces/{space}/services/facts")
    assert service is not None
    return str(service["spec"]["selector"][LABEL_REVISION])


def deployments(world: World, space: str) -> set[str]:
    found = world.items(f"/apis/apps/v1/namespaces/{space}/deployments")
    return {d["metadata"]["labels"][LABEL_REVISION] for d in found}


def answering(world: World, space: str) -> list[str]:
    """Pods that the stable Service selects and that are ready."""
    service = world.get(f"/api/v1/namespaces/{space}/services/facts")
    assert service is not None
    wanted = service["spec"]["selector"].items()
    pods = world.items(f"/api/v1/namespaces/{space}/pods")
    return [p["metadata"]["name"] for p in pods if wanted <= p["metadata"]["labels"].items() and is_ready(p)]


def is_ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or [])


AT_ONCE = {"rollbackWindowSeconds": 0}  # the revision before goes when the next one serves


def test_rollout_promotion_refusal_and_silence(world: World, operators: Operators) -> None:
    space = world.namespace("serving")
    path = apply_serve(world, space)
    operator = operators("-m", "finetune_operator").start()
    with ServingNode(world, space) as node:
        wait_until("the first revision serves", lambda: is_true(world, path, "Ready"))
        first = selected(world, space)
        assert len(answering(world, space)) == 1
        assert status(world, path)["url"] == f"http://facts.{space}.svc:8000/v1"

        node.gate = WRONG
        apply_serve(world, space, model={"uri": "pvc://models/two"})
        wait_until("the second is refused", lambda: is_true(world, path, "Stalled"))
        assert status(world, path)["candidate"]["reason"] == "GateFailed"
        assert "empty answer" in status(world, path)["candidate"]["message"]
        assert selected(world, space) == first
        assert is_true(world, path, "Available")
        wait_until("the refused one is gone", lambda: deployments(world, space) == {first})

        node.gate = Termination()
        apply_serve(world, space, model={"uri": "pvc://models/three"}, rollout=AT_ONCE)
        wait_until("the third serves", lambda: is_true(world, path, "Ready"))
        third = selected(world, space)
        assert third != first
        wait_until("the first is gone", lambda: deployments(world, space) == {third})

        apply_serve(world, space, model={"uri": "pvc://models/three"}, rollout=AT_ONCE, suspend=True)
        wait_until("no pod is left", lambda: not answering(world, space))
        wait_until("that is as it should be", lambda: is_true(world, path, "Ready"))
        apply_serve(world, space, model={"uri": "pvc://models/three"}, rollout=AT_ONCE, replicas=2)
        wait_until("two pods answer", lambda: len(answering(world, space)) == 2 and is_true(world, path, "Ready"))
        assert world.get(path)["status"]["replicas"] == 2  # type: ignore[index]

        before = quiet(operator)
        operator.kill()
        operator.start()
        wait_until("the fresh operator acts", lambda: operator.log.count('"leading"') == 2, 40)
        assert quiet(operator) == before, "a fresh operator changes nothing"
    assert operator.refusals() == []


def test_operator_killed_while_it_rolls_out(world: World, operators: Operators) -> None:
    space = world.namespace("serving-killed")
    path = apply_serve(world, space)
    operator = operators("-m", "finetune_operator").start()
    with ServingNode(world, space) as node:
        node.gate = None
        wait_until("the gate is asked", lambda: world.items(f"/apis/batch/v1/namespaces/{space}/jobs"))
        operator.kill()
        node.gate = Termination()
        operator.start()
        wait_until("it serves", lambda: is_true(world, path, "Ready"), 40)
        assert len(world.items(f"/apis/batch/v1/namespaces/{space}/jobs")) == 1
        assert deployments(world, space) == {selected(world, space)}
    assert operator.refusals() == []


def test_a_service_of_that_name_is_never_taken_over(world: World, operators: Operators) -> None:
    space = world.namespace("serving-taken")
    service = f"/api/v1/namespaces/{space}/services/facts"
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "facts"}}
    world.api.apply(service, body | {"spec": {"selector": {"app": "mine"}, "ports": [{"port": 80}]}})
    path = apply_serve(world, space)
    operators("-m", "finetune_operator").start()
    wait_until("it stalls", lambda: is_true(world, path, "Stalled"))
    assert status(world, path)["conditions"][0]["reason"] == "NameTaken"
    assert world.get(service)["spec"]["selector"] == {"app": "mine"}  # type: ignore[index]
    assert deployments(world, space) == set()
