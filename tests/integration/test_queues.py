"""A LocalQueue on a real API server: without Kueue's definitions, without the queue, and there; and who may read it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from localcluster.api import ApiError
from tests.integration.conftest import SYSTEM, World
from tests.waiting import wait_until

from finetune_operator.cluster import Cluster
from finetune_operator.decision import Ref
from finetune_operator.kueue import KUEUE, LOCAL_QUEUE, NOT_SERVED

NAMES = {"kind": LOCAL_QUEUE, "plural": "localqueues", "singular": "localqueue", "listKind": "LocalQueueList"}
SCHEMA = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": f"localqueues.{KUEUE}",
        "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
    },
    "spec": {
        "group": KUEUE,
        "names": NAMES,
        "scope": "Namespaced",
        "versions": [{"name": "v1beta1", "served": True, "storage": True, "schema": {"openAPIV3Schema": SCHEMA}}],
    },
}
QUEUE = {"apiVersion": f"{KUEUE}/v1beta1", "kind": LOCAL_QUEUE, "metadata": {"name": "gpus"}, "spec": {"clusterQueue": "all"}}


def test_what_a_waiting_jobs_queue_comes_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(world.plane.kubeconfig))
    world.namespace("queues")
    definition = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{DEFINITION['metadata']['name']}"  # type: ignore[index]
    queue = f"/apis/{KUEUE}/v1beta1/namespaces/queues/localqueues"

    async def ask() -> Any:
        cluster = await Cluster.connect(lambda: None, "test")
        try:
            return await cluster.read("queues", Ref(LOCAL_QUEUE, "gpus"))
        finally:
            await cluster.close()

    def served() -> bool:
        try:
            return world.get(queue) is not None
        except ApiError:
            return False

    assert asyncio.run(ask()) == NOT_SERVED
    world.api.apply(definition, DEFINITION)
    try:
        wait_until("the kind is served", served)
        wait_until("a queue that is missing is told from a kind that is", lambda: asyncio.run(ask()) is None)
        world.api.apply(f"{queue}/gpus", QUEUE)
        assert asyncio.run(ask())["spec"] == {"clusterQueue": "all"}
        account = f"system:serviceaccount:{SYSTEM}:finetune-operator"
        asked = ("auth", "can-i", "get", f"localqueues.{KUEUE}", "-n", "queues", f"--as={account}")
        assert world.kubectl(*asked).strip() == "yes"
    finally:
        world.api.request("DELETE", definition)
