"""The ModelServe's real policy against a real API server, with exactly the chart's rights: load, gate, promote, replace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.integration.conftest import FINETUNE, Operator, World
from tests.integration.fake_node import Ending, FakeNode, Pod
from tests.integration.test_crashes import PROGRAM
from tests.integration.test_operator import condition, quiet
from tests.waiting import wait_until


def apply_serve(world: World, namespace: str, **spec: Any) -> str:
    """A ModelServe over a claim; returns its path."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    world.api.apply(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/models", claim)
    path = f"{FINETUNE}/namespaces/{namespace}/modelserves/bot"
    fields = {"model": {"uri": "pvc://models/one"}, "engine": {"type": "LlamaCpp"}, "parallelism": {"gpus": False}}
    body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "ModelServe", "metadata": {"name": "bot"}}
    world.api.apply(path, body | {"spec": fields | spec})
    return path


def good_engine(pod: Pod) -> Ending | None:
    """Engines run on and are ready; a gate's questions are answered."""
    return (0, "{}") if pod["spec"]["restartPolicy"] == "Never" else None


def test_a_model_is_loaded_asked_promoted_replaced_and_taken_away(world: World, operators: Callable[..., Operator]) -> None:
    space = world.namespace("rollout")
    window = {"rollbackWindowSeconds": 3}
    path = apply_serve(world, space, rollout=window)
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    services = f"/api/v1/namespaces/{space}/services"

    def live() -> str | None:
        service = world.get(f"{services}/bot") or {}
        revision: str | None = service.get("spec", {}).get("selector", {}).get("finetune.dev/revision")
        return revision

    with FakeNode(world.api, space, good_engine):
        wait_until("the first revision is live", lambda: condition(world, path, "Ready") == "True", 60)
        first = live()
        assert first
        status = world.read(path)["status"]
        assert status["live"]["name"] == first
        assert status["url"].startswith(f"http://bot.{space}.svc")
        assert condition(world, path, "Available") == "True"

        writes = quiet(operator)
        apply_serve(world, space, rollout=window)
        assert quiet(operator) == writes, "the same again changes nothing"

        apply_serve(world, space, rollout=window, model={"uri": "pvc://models/two"})
        wait_until("the second revision is live", lambda: live() not in (first, None), 60)
        wait_until("it is ready", lambda: condition(world, path, "Ready") == "True")
        deployments = f"/apis/apps/v1/namespaces/{space}/deployments"
        wait_until("the first one's window has ended", lambda: len(world.items(deployments)) == 1)
        assert [d["metadata"]["labels"]["finetune.dev/revision"] for d in world.items(deployments)] == [live()]
        quiet(operator)

        world.kubectl("scale", "mserve", "bot", "-n", space, "--replicas=2")
        wait_until("there are two pods", lambda: (world.get(path) or {})["status"].get("replicas") == 2)
        world.api.request("DELETE", path, {"propagationPolicy": "Background"})
        wait_until("everything is collected", lambda: not world.get(f"{services}/bot"), 60)
    assert operator.refusals() == []


def test_a_model_that_does_not_answer_never_takes_over(world: World, operators: Callable[..., Operator]) -> None:
    space = world.namespace("refusal")
    path = apply_serve(world, space)
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    answer: list[Ending] = [(0, "{}")]

    def engine(pod: Pod) -> Ending | None:
        return answer[0] if pod["spec"]["restartPolicy"] == "Never" else None

    with FakeNode(world.api, space, engine):
        wait_until("the first revision is live", lambda: condition(world, path, "Ready") == "True", 60)
        answer[0] = (24, '{"failure": {"reason": "GateFailed", "message": "no answer to the greeting"}}')
        apply_serve(world, space, model={"uri": "pvc://models/two"})
        wait_until("the second is refused", lambda: condition(world, path, "Stalled") == "True", 60)
    status = world.read(path)["status"]
    assert condition(world, path, "Available") == "True"
    assert status["live"]["modelUri"] == "pvc://models/one"
    assert status["candidate"]["state"] == "Refused"
    assert "no answer to the greeting" in status["candidate"]["message"]
    assert operator.refusals() == []


def test_what_serves_is_repaired_while_another_revision_stands_refused(
    world: World, operators: Callable[..., Operator]
) -> None:
    space = world.namespace("tampered")
    path = apply_serve(world, space)
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    answer: list[Ending] = [(0, "{}")]
    deployments, service = f"/apis/apps/v1/namespaces/{space}/deployments", f"/api/v1/namespaces/{space}/services/bot"

    def engine(pod: Pod) -> Ending | None:
        return answer[0] if pod["spec"]["restartPolicy"] == "Never" else None

    def image() -> str | None:
        found = world.items(deployments)
        return found[0]["spec"]["template"]["spec"]["containers"][0]["image"] if found else None

    def patch(url: str, spec: dict[str, Any]) -> None:
        world.api.request("PATCH", url, {"spec": spec}, "application/strategic-merge-patch+json")

    with FakeNode(world.api, space, engine):
        wait_until("the first revision is live", lambda: condition(world, path, "Ready") == "True", 60)
        answer[0] = (24, '{"failure": {"reason": "GateFailed", "message": "no answer to the greeting"}}')
        apply_serve(world, space, model={"uri": "pvc://models/two"})
        wait_until("the second is refused", lambda: condition(world, path, "Stalled") == "True", 60)
        wait_until("it is gone", lambda: len(world.items(deployments)) == 1)
        quiet(operator)
        (live,), wanted, ports = world.items(deployments), image(), world.read(service)["spec"]["ports"]
        name = live["metadata"]["name"]
        world.kubectl("set", "image", f"deployment/{name}", "engine=somebody/elses:latest", "-n", space)
        wait_until("the image is the recorded one", lambda: image() == wanted)
        patch(service, {"ports": [{"$patch": "replace"}, {"name": "http", "port": 1}], "selector": {"app": "other"}})
        wait_until("the Service is as it was", lambda: "app" not in world.read(service)["spec"]["selector"])
        wait_until("its port, too", lambda: world.read(service)["spec"]["ports"] == ports)
        world.api.request("DELETE", f"{deployments}/{name}")
        wait_until("what serves is back", lambda: image() == wanted)
        wait_until("and answers", lambda: condition(world, path, "Available") == "True")
        before = quiet(operator)
        world.kubectl("annotate", "mserve", "bot", "-n", space, "note=nothing")
        assert quiet(operator) == before, "what stands is not applied again"
    assert operator.refusals() == []
