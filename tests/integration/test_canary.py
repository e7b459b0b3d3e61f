"""A share of the traffic first, against a real API server: by pods behind one Service, and by a real HTTPRoute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from localcluster import settings, toolchain
from tests.integration.conftest import Operator, World
from tests.integration.fake_node import Ending, FakeNode, Pod
from tests.integration.test_crashes import PROGRAM
from tests.integration.test_operator import condition, events, quiet
from tests.integration.test_rollback import TWO, crash, live, revision
from tests.integration.test_rollout import apply_serve, good_engine
from tests.waiting import wait_until

GATEWAY_API = ("sigs.k8s.io/gateway-api", "v1.4.1")
STEPS = [{"weight": 25}, {"weight": 50}]


def engines(pod: Pod) -> Ending | None:
    """A watch goes on."""
    return None if pod["spec"]["containers"][0]["name"] == "watch" else good_engine(pod)


def canary(world: World, path: str) -> dict[str, Any]:
    found: dict[str, Any] = world.read(path)["status"].get("canary", {})
    return found


def reached(world: World, path: str, step: int) -> None:
    wait_until(f"step {step} has its share", lambda: (c := canary(world, path)).get("step") == step and "since" in c, 60)


def promote(world: World, space: str, value: str) -> None:
    world.kubectl("annotate", "--overwrite", "mserve", "bot", "-n", space, f"finetune.dev/promote={value}")


def answering(world: World, space: str) -> set[str]:
    """Names of the pods that the Service leads to, as its EndpointSlices say: those in slices that have a port."""
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{space}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dbot"
    found = [one for one in world.items(slices) if one.get("ports")]
    return {e["targetRef"]["name"] for one in found for e in one["endpoints"] if e["conditions"]["ready"]}


def give_addresses(world: World, space: str) -> None:
    """The network plugin: each running pod has an address."""
    pods = f"/api/v1/namespaces/{space}/pods"
    for number, pod in enumerate(world.items(pods), 1):
        if pod["status"]["phase"] == "Running":
            address = f"10.9.0.{number}"
            status = {"status": {"podIP": address, "podIPs": [{"ip": address}]}}
            world.api.request("PATCH", f"{pods}/{pod['metadata']['name']}/status", status, "application/merge-patch+json")


def test_a_share_by_pods_goes_on_with_people_and_comes_back_from_a_crash(
    world: World, operators: Callable[..., Operator]
) -> None:
    space = world.namespace("canary")
    spec: dict[str, Any] = {"replicas": 3, "engine": {"type": "VLLM"}, "rollout": {"canary": {"steps": STEPS}}}
    path = apply_serve(world, space, **spec)
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    deployments, service = f"/apis/apps/v1/namespaces/{space}/deployments", f"/api/v1/namespaces/{space}/services/bot"
    with FakeNode(world.api, space, engines):
        wait_until("the first revision is live", lambda: condition(world, path, "Ready") == "True", 60)
        first = live(world, space)
        apply_serve(world, space, **spec, model=TWO)
        reached(world, path, 1)
        second = world.read(path)["status"]["candidate"]["name"]
        assert {revision(d): d["spec"]["replicas"] for d in world.items(deployments)} == {first: 3, second: 1}
        assert "finetune.dev/revision" not in world.read(service)["spec"]["selector"]
        found = canary(world, path)
        assert (found["share"], found["by"], found["signals"]) == (25, "Replicas", ["Restarts", "Probes", "Errors"])
        assert (condition(world, path, "Available"), condition(world, path, "Reconciling")) == ("True", "True")

        watch = f"/api/v1/namespaces/{space}/pods?labelSelector=finetune.dev%2Fgate"
        wait_until("the watch runs", lambda: [p["status"]["phase"] for p in world.items(watch)] == ["Running"], 60)
        give_addresses(world, space)
        chosen = f"/api/v1/namespaces/{space}/pods?labelSelector=finetune.dev%2Frevision"
        pods = {p["metadata"]["name"] for p in world.items(chosen)}
        assert len(pods) == 4
        wait_until("the pods of both answer, and the watch does not", lambda: answering(world, space) == pods)

        quiet(operator)
        operator.kill()
        promote(world, space, f"{second}/2")
        operator.start()
        reached(world, path, 2)
        assert {revision(d): d["spec"]["replicas"] for d in world.items(deployments)} == {first: 3, second: 3}
        assert canary(world, path)["share"] == 50
        quiet(operator)

        crash(world, space, second)
        wait_until("the first has all traffic", lambda: live(world, space) == first)
        wait_until("the second is gone", lambda: [revision(d) for d in world.items(deployments)] == [first])
        status = world.read(path)["status"]
        assert (status["candidate"]["name"], status["candidate"]["reason"]) == (second, "EngineRestarted")
        assert "canary" not in status
        assert {"Canary", "RevisionRolledBack"} <= {e["reason"] for e in events(world, space)}
        writes = quiet(operator)
        operator.kill()
        operator.start()
        assert quiet(operator) == writes, "what was given back is not tried again"
    assert operator.refusals() == []


def test_weights_of_a_real_http_route(world: World, operators: Callable[..., Operator]) -> None:
    """The definition is the Gateway API's own; a patch of the status plays its controller."""
    folder = toolchain.module(settings.read().cache, *GATEWAY_API) / "config/crd/standard"
    world.kubectl("apply", "--server-side", "-f", str(folder / "gateway.networking.k8s.io_httproutes.yaml"))
    world.kubectl("wait", "--for=condition=Established", "crd/httproutes.gateway.networking.k8s.io", "--timeout=60s")
    space = world.namespace("routed")
    route = {"gateway": {"name": "public", "namespace": "infra"}, "hostname": "bot.example.com"}
    spec: dict[str, Any] = {"replicas": 2, "rollout": {"canary": {"steps": [{"weight": 5}]}, "rollbackWindowSeconds": 0}}
    path = apply_serve(world, space, **spec, route=route)
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    routes = f"/apis/gateway.networking.k8s.io/v1/namespaces/{space}/httproutes/bot"

    def weights() -> dict[str, int]:
        (rule,) = world.read(routes)["spec"]["rules"]
        return {b["name"]: b["weight"] for b in rule["backendRefs"]}

    with FakeNode(world.api, space, good_engine):
        wait_until("the first revision is live", lambda: condition(world, path, "Ready") == "True", 60)
        wait_until("there is a route", lambda: world.get(routes))
        first = live(world, space)
        assert world.read(path)["status"]["route"]["accepted"] is False
        said = {
            "type": "Accepted",
            "status": "True",
            "reason": "Accepted",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        parent = {"parentRef": {"name": "public"}, "controllerName": "example.com/gateway", "conditions": [said]}
        world.api.request("PATCH", f"{routes}/status", {"status": {"parents": [parent]}}, "application/merge-patch+json")
        wait_until("status says where to call", lambda: world.read(path)["status"]["url"] == "https://bot.example.com/v1")
        assert weights() == {"bot": 1}
        quiet(operator)

        apply_serve(world, space, **spec, route=route, model=TWO)
        reached(world, path, 1)
        second = world.read(path)["status"]["candidate"]["name"]
        wait_until("it has its weight", lambda: weights() == {"bot": 95, f"bot-{second}": 5})
        assert (canary(world, path)["by"], canary(world, path)["share"], live(world, space)) == ("Route", 5, first)
        quiet(operator)
        promote(world, space, second)
        wait_until("the second serves", lambda: live(world, space) == second, 60)
        wait_until("the route leads to it alone", lambda: weights() == {"bot": 1})
        wait_until("it is ready", lambda: condition(world, path, "Ready") == "True", 60)
        quiet(operator)
        world.api.request("PATCH", path, {"spec": {"route": None}}, "application/merge-patch+json")
        wait_until("the route is gone", lambda: world.get(routes) is None)
        wait_until("status tells so", lambda: "route" not in world.read(path)["status"])
    assert operator.refusals() == []
