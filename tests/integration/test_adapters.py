"""Adapters on a real API server, with exactly the chart's rights: what pods read is written, and put back after hand edits."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.integration.conftest import Operator, World
from tests.integration.test_modelserve import WRONG, ServingNode, apply_serve, is_true, status
from tests.integration.test_operator import quiet
from tests.waiting import wait_until

from finetune_operator.names import ANNOTATION_TOLD

ROOM: dict[str, Any] = {"engine": {"type": "VLLM"}, "lora": {}}
LEGAL = {"name": "legal", "uri": "pvc://models/legal", "digest": "sha256:" + "c" * 64}
NEXT = {**LEGAL, "digest": "sha256:" + "d" * 64}


def test_an_adapter_comes_is_followed_and_goes_in_pods_that_run(world: World, operators: Callable[..., Operator]) -> None:
    space = world.namespace("adapters")
    path = apply_serve(world, space, **ROOM)
    config_map = f"/api/v1/namespaces/{space}/configmaps/facts-adapters"

    def wanted() -> dict[str, bool]:
        found = json.loads((world.get(config_map) or {"data": {"wanted.json": "{}"}})["data"]["wanted.json"])
        return {f"{a['name']}@{a['digest'][7]}": a["serves"] for a in found.get("adapters", [])}

    def told() -> dict[str, Any]:
        found: dict[str, Any] = next(iter(status(world, path).get("adapters", [])), {})
        return found

    def noted() -> set[str]:
        """The lists that the pods' kubelets were told of."""
        found = world.items(f"/api/v1/namespaces/{space}/pods?labelSelector=finetune.dev/revision")
        return {p["metadata"].get("annotations", {}).get(ANNOTATION_TOLD, "none") for p in found}

    def version() -> str:
        found = world.get(config_map) or {"data": {"wanted.json": "{}"}}
        return str(json.loads(found["data"]["wanted.json"]).get("version"))

    operator = operators("-m", "finetune_operator", FINETUNE_NAMESPACE=space).start()
    with ServingNode(world, space) as node:
        wait_until("the model serves", lambda: is_true(world, path, "Ready"))
        pods = world.items(f"/api/v1/namespaces/{space}/pods?labelSelector=finetune.dev/revision")
        apply_serve(world, space, **ROOM, adapters=[LEGAL])
        wait_until("its adapter serves", lambda: is_true(world, path, "AdaptersReady"))
        assert (told()["state"], wanted()) == ("Live", {"legal@c": True})
        assert noted() == {version()}, "so that their kubelets look at once"

        node.gate = WRONG
        apply_serve(world, space, **ROOM, adapters=[NEXT])
        wait_until("the next one is refused", lambda: told().get("state") == "Refused")
        assert (told()["reason"], told()["live"]["digest"], wanted()) == ("GateFailed", LEGAL["digest"], {"legal@c": True})
        assert is_true(world, path, "Ready")
        assert is_true(world, path, "Available")

        world.api.request("PATCH", config_map, {"data": {"wanted.json": "{}"}}, "application/merge-patch+json")
        wait_until("what somebody wrote there is put back", lambda: wanted() == {"legal@c": True})
        world.api.request("DELETE", config_map)
        wait_until("it is made anew", lambda: wanted() == {"legal@c": True})
        quiet(operator)

        apply_serve(world, space, **ROOM, adapters=[])
        wait_until("it is taken out", lambda: wanted() == {})
        quiet(operator)
        assert noted() == {version()}
        assert "AdaptersReady" not in {c["type"] for c in status(world, path)["conditions"]}
        after = world.items(f"/api/v1/namespaces/{space}/pods?labelSelector=finetune.dev/revision")
        assert [p["metadata"]["uid"] for p in after] == [p["metadata"]["uid"] for p in pods], "no pod was started for all that"
        jobs = world.items(f"/apis/batch/v1/namespaces/{space}/jobs?labelSelector=finetune.dev/adapter")
        assert jobs == [], "gates go once their verdict is told"
    assert operator.refusals() == []
