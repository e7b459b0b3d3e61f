"""No pods while nobody asks, on a real API server with the chart's rights: it sleeps, wakes, and gives its gateway back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.integration.conftest import Operator, World
from tests.integration.test_modelserve import AT_ONCE, ServingNode, apply_serve, is_true, selected, status
from tests.integration.test_operator import quiet
from tests.waiting import wait_until

from finetune_operator.names import LABEL_GATEWAY, LABEL_REVISION
from finetune_trainer.contract.gateway import Look, Until

SLEEPY: dict[str, Any] = {"autoscaling": {"minReplicas": 0, "maxReplicas": 1}, "rollout": AT_ONCE}


class DozingNode(ServingNode):
    """Makes gateways' pods ready as well; what waits at them ends when the test says that it has come."""

    come: Until | None = None

    def _status(self, pod: dict[str, Any]) -> dict[str, Any] | None:
        container = pod["spec"]["containers"][0]
        if container["name"] == "look":
            wanted = Look.model_validate_json(container["command"][-1])
            return super()._status(pod) if wanted.until is self.come else None
        labels = pod["metadata"]["labels"]
        played = {**labels, LABEL_REVISION: "gateway"} if LABEL_GATEWAY in labels else labels
        return super()._status({**pod, "metadata": {**pod["metadata"], "labels": played}})


def test_it_sleeps_wakes_and_gives_its_gateway_back(world: World, operators: Callable[..., Operator]) -> None:
    space = world.namespace("sleeping")
    path = apply_serve(world, space, **SLEEPY)

    def pods() -> int:
        return len(world.items(f"/api/v1/namespaces/{space}/pods?labelSelector={LABEL_REVISION}"))

    def ready() -> str:
        return next((c["reason"] for c in status(world, path).get("conditions", []) if c["type"] == "Ready"), "")

    def behind() -> list[str]:
        """What is left of the gateway."""
        kinds = ("apis/apps/v1/namespaces/{}/deployments", "apis/batch/v1/namespaces/{}/jobs", "api/v1/namespaces/{}/services")
        found = [o for kind in kinds for o in world.items(f"/{kind.format(space)}?labelSelector={LABEL_GATEWAY}")]
        return [o["metadata"]["name"] for o in found]

    def leads_to_gateway() -> bool:
        service = world.get(f"/api/v1/namespaces/{space}/services/facts")
        return service is not None and LABEL_GATEWAY in service["spec"]["selector"]

    operator = operators("-m", "finetune_operator", FINETUNE_NAMESPACE=space).start()
    node = DozingNode(world, space)
    with node:
        wait_until("it serves behind its gateway", lambda: is_true(world, path, "Ready") and leads_to_gateway())
        revision = status(world, path)["live"]["name"]
        quiet(operator)
        for _ in range(2):
            node.come = Until.IDLE
            wait_until("it sleeps", lambda: ready() == "ScaledToZero" and pods() == 0)
            assert is_true(world, path, "Ready")
            assert is_true(world, path, "Available")
            assert leads_to_gateway()
            quiet(operator)
            node.come = Until.ASKED
            wait_until("it is awake", lambda: ready() == "Serving" and pods() == 1)
            assert status(world, path)["live"]["name"] == revision
            quiet(operator)

        apply_serve(world, space, rollout=AT_ONCE)
        wait_until("the Service leads to the pods", lambda: not leads_to_gateway())
        assert selected(world, space) == revision
        wait_until("nothing of the gateway is left", lambda: behind() == [])
        quiet(operator)
