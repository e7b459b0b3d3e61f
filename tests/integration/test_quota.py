"""A real ResourceQuota and a real LimitRange refuse a Job's pod: their words are found, and the reason is read from them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.integration.conftest import SYSTEM, World
from tests.waiting import wait_until

from finetune_operator import pod_security
from finetune_operator.cluster import Cluster
from finetune_operator.decision import Ref
from finetune_operator.refusals import REFUSAL, reason_of

QUOTA = {"kind": "ResourceQuota", "spec": {"hard": {"limits.memory": "4Gi"}}}
RANGE = {"kind": "LimitRange", "spec": {"limits": [{"type": "Container", "max": {"memory": "4Gi"}}]}}


def job(**resources: Any) -> dict[str, Any]:
    container = {"name": "step", "image": "none", "resources": resources, "securityContext": pod_security.container()}
    template = {"spec": {"restartPolicy": "Never", "containers": [container], "securityContext": pod_security.pod()}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "step"}, "spec": {"template": template}}


@pytest.mark.parametrize(
    ("namespace", "policy", "resources", "reason", "words"),
    [
        ("quota-used", QUOTA, {"limits": {"memory": "8Gi"}}, "QuotaExceeded", "exceeded quota: policy"),
        ("quota-untold", QUOTA, {}, "QuotaExceeded", "must specify limits.memory for: step"),
        ("range", RANGE, {"limits": {"memory": "8Gi"}}, "LimitRangeExceeded", "maximum memory usage per Container is 4Gi"),
    ],
)
def test_who_refuses_a_pod_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch, namespace: str, policy: Any, resources: Any, reason: str, words: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(world.plane.kubeconfig))
    world.namespace(namespace)
    plural = f"{policy['kind'].lower()}s"
    world.api.apply(
        f"/api/v1/namespaces/{namespace}/{plural}/policy", {"apiVersion": "v1", **policy, "metadata": {"name": "policy"}}
    )
    world.api.apply(f"/apis/batch/v1/namespaces/{namespace}/jobs/step", job(**resources))

    async def read() -> Any:
        cluster = await Cluster.connect(lambda: None, "test")
        try:
            return await cluster.read(namespace, Ref(REFUSAL, "step"))
        finally:
            await cluster.close()

    found = wait_until("the Job controller has told of the refusal", lambda: asyncio.run(read()))
    assert words in found["note"]
    assert reason_of(found["note"]) == reason
    account = f"system:serviceaccount:{SYSTEM}:finetune-operator"
    assert world.kubectl("auth", "can-i", "list", "events.events.k8s.io", "-n", namespace, f"--as={account}").strip() == "yes"
