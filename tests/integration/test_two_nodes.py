"""Training on two nodes against a real API server and its Job controller: the pods, their names, what a lost rank does."""

from __future__ import annotations

from collections.abc import Callable

from tests.builders import reported_failure
from tests.integration.conftest import Operator, World
from tests.integration.fake_node import Ending, FakeNode, Pod
from tests.integration.test_crashes import apply_facts, trainer
from tests.waiting import wait_until

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import Termination

PROGRAM = ("-m", "finetune_operator")
INDEX = "batch.kubernetes.io/job-completion-index"


def apply_on_two_nodes(world: World, namespace: str) -> str:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    world.api.apply(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/shared", claim)
    path = apply_facts(world, namespace)
    spec = {
        "parallelism": {"gpusPerNode": 0, "numNodes": 2},
        "training": {"method": "LoRA"},
        "storage": {"artifacts": {"uri": "pvc://shared/facts"}},
    }
    world.api.request("PATCH", path, {"spec": spec}, "application/merge-patch+json")
    return path


def test_two_pods_train_and_one_failure_ends_both(world: World, operators: Callable[..., Operator]) -> None:
    space = world.namespace("two-nodes")
    path = apply_on_two_nodes(world, space)
    succeed = trainer(world, space)
    seen: dict[str, Pod] = {}

    def ending(pod: Pod) -> Ending | None:
        """The first attempt loses a rank; in the second, pod 0 reports and pod 1 has nothing to say."""
        labels = pod["metadata"]["labels"]
        if labels["finetune.dev/step"] != "train":
            return succeed(pod)
        index = pod["metadata"]["annotations"][INDEX]
        seen[f"{labels['finetune.dev/attempt']}-{index}"] = pod
        if labels["finetune.dev/attempt"] == "1":
            code, said = reported_failure(ExitCode.LOST_RANK, "LostRank", "another rank is gone")
            return int(code), said.model_dump_json(by_alias=True, exclude_none=True)
        return succeed(pod) if index == "0" else (0, Termination().model_dump_json())

    operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    with FakeNode(world.api, space, ending):
        wait_until(
            "it succeeds", lambda: "True" in [c["status"] for c in conditions(world, path) if c["type"] == "Succeeded"], 240
        )
    status = (world.get(path) or {})["status"]
    train = next(s for s in status["steps"] if s["name"] == "train")
    assert (train["attempt"], train["retries"], status["lastFailure"]["reason"]) == (2, 1, "LostRank")
    assert sorted(seen) == ["1-0", "1-1", "2-0", "2-1"]
    (service,) = world.items(f"/api/v1/namespaces/{space}/services")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    first, second = seen["2-0"], seen["2-1"]
    assert service["spec"]["selector"].items() <= second["metadata"]["labels"].items()
    assert {p["spec"]["subdomain"] for p in (first, second)} == {service["metadata"]["name"]}
    environment = {e["name"]: e.get("value") for e in second["spec"]["containers"][0]["env"]}
    meet = f"{first['spec']['hostname']}.{service['metadata']['name']}:29500"
    assert environment["FINETUNE_MASTER"] == meet
    assert "JOB_COMPLETION_INDEX" in environment
    owners = {o["uid"] for o in service["metadata"]["ownerReferences"]}
    assert owners == {(world.get(path) or {})["metadata"]["uid"]}, "it goes when the FineTuneJob goes"


def conditions(world: World, path: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = (world.get(path) or {}).get("status", {}).get("conditions", [])
    return found
