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

from finetune_operator import pod_security
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.modelserve import objects
from finetune_operator.names import LABEL_GATE, LABEL_REVISION, serve_labels

GATEWAY_API = ("sigs.k8s.io/gateway-api", "v1.4.1")
STEPS = [{"weight": 25}, {"weight": 50}]


def engines(pod: Pod) -> Ending | None:
    """A watch goes on."""
    return None if pod["spec"]["containers"][0]["name"] == "watch" else good_engine(pod)


def canary(world: World, path: str) -> dict[str, Any]:
    found: dict[str, Any] = world.read(path)["status"].get("canary", {})
    return found


def reached(world: World, path: str, step: int) -> None:
    wait_until(f"step {step} has its share", lambda: (c := canary(world, path)).get("step") == step and "since" in c, 180)


def promote(world: World, space: str, value: str) -> None:
    world.kubectl("annotate", "--overwrite", "mserve", "bot", "-n", space, f"finetune.dev/promote={value}")


def a_pod(world: World, space: str, name: str, labels: dict[str, str], ports: list[dict[str, Any]]) -> None:
    """A pod on a node that is but a name, as it looks while it runs."""
    container = {"name": "main", "image": "none", "ports": ports, "securityContext": pod_security.container()}
    spec = {"nodeName": "nowhere", "securityContext": pod_security.pod(), "containers": [container]}
    path = f"/api/v1/namespaces/{space}/pods"
    world.api.request("POST", path, {"metadata": {"name": name, "labels": labels}, "spec": spec})
    address = f"10.9.0.{len(name)}"
    status = {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    world.api.request("PATCH", f"{path}/{name}/status", {"status": status}, "application/merge-patch+json")


def test_a_shared_service_leads_to_engines_and_not_to_those_who_ask_them(world: World) -> None:
    """The EndpointSlice controller has the word: a slice without a port leads nowhere."""
    space, labels = world.namespace("shared"), serve_labels("bot")
    meta = {"name": "bot", "namespace": space, "uid": "0", "generation": 1}
    spec = {"model": {"uri": "pvc://models/one"}, "engine": {"type": "VLLM"}}
    serve = ModelServe.model_validate({"metadata": meta, "spec": spec})
    service = objects.stable_service(serve, "a", (), shared=True)
    del service["metadata"]["ownerReferences"]
    world.api.request("POST", "/api/v1/nodes", {"metadata": {"name": "nowhere"}})
    try:
        engine = [{"name": "http", "containerPort": 8000}]
        a_pod(world, space, "live", {**labels, LABEL_REVISION: "a"}, engine)
        a_pod(world, space, "candidate", {**labels, LABEL_REVISION: "b"}, engine)
        a_pod(world, space, "watch", {**labels, LABEL_GATE: "b"}, [])
        a_pod(world, space, "another", serve_labels("another"), engine)
        world.api.request("POST", f"/api/v1/namespaces/{space}/services", service)
        slices = f"/apis/discovery.k8s.io/v1/namespaces/{space}/endpointslices"

        def told() -> list[tuple[list[str], list[int]]]:
            found = [one for one in world.items(slices) if one.get("endpoints")]
            ports = [[p["port"] for p in one.get("ports") or []] for one in found]
            return sorted(
                (sorted(e["targetRef"]["name"] for e in one["endpoints"]), p) for one, p in zip(found, ports, strict=True)
            )

        wait_until("all three are told of", lambda: sum(len(names) for names, _ in told()) == 3)
        assert told() == [(["candidate", "live"], [8000]), (["watch"], [])]
    finally:
        world.api.request("DELETE", "/api/v1/nodes/nowhere")
        for name in ("live", "candidate", "watch", "another"):
            world.api.request("DELETE", f"/api/v1/namespaces/{space}/pods/{name}?gracePeriodSeconds=0")


def test_a_share_by_pods_goes_on_with_people_and_comes_back_from_a_crash(
    world: World, operators: Callable[..., Operator]
) -> None:
    space = world.namespace("canary")
    spec: dict[str, Any] = {"replicas": 3, "engine": {"type": "VLLM"}, "rollout": {"canary": {"steps": STEPS}}}
    path = apply_serve(world, space, **spec)
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    deployments, service = f"/apis/apps/v1/namespaces/{space}/deployments", f"/api/v1/namespaces/{space}/services/bot"
    with FakeNode(world.api, space, engines):
        wait_until("the first revision is live", lambda: condition(world, path, "Ready") == "True", 180)
        first = live(world, space)
        apply_serve(world, space, **spec, model=TWO)
        reached(world, path, 1)
        second = world.read(path)["status"]["candidate"]["name"]
        assert {revision(d): d["spec"]["replicas"] for d in world.items(deployments)} == {first: 3, second: 1}
        wait_until("they share", lambda: "finetune.dev/revision" not in world.read(service)["spec"]["selector"])
        found = canary(world, path)
        assert (found["share"], found["by"], found["signals"]) == (25, "Replicas", ["Restarts", "Probes", "Errors"])
        assert (condition(world, path, "Available"), condition(world, path, "Reconciling")) == ("True", "True")

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
        operator.kill()
        world.kubectl("patch", "mserve", "bot", "-n", space, "--subresource=status", "--type=json",
                      "-p", '[{"op": "replace", "path": "/status", "value": {"observedGeneration": -1}}]')  # fmt: skip
        operator.start()
        wait_until("it is told again", lambda: condition(world, path, "Stalled") == "True", 180)
        quiet(operator)
        assert (live(world, space), [revision(d) for d in world.items(deployments)]) == (first, [first]), (
            "it is not tried again"
        )
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
        wait_until("the first revision is live", lambda: condition(world, path, "Ready") == "True", 180)
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
        wait_until("the second serves", lambda: live(world, space) == second, 120)
        wait_until("the route leads to it alone", lambda: weights() == {"bot": 1})
        wait_until("it is ready", lambda: condition(world, path, "Ready") == "True", 180)
        quiet(operator)
        world.api.request("PATCH", path, {"spec": {"route": None}}, "application/merge-patch+json")
        wait_until("the route is gone", lambda: world.get(routes) is None)
        wait_until("status tells so", lambda: "route" not in world.read(path)["status"])
    assert operator.refusals() == []
