"""`kubectl finetune doctor`: a healthy cluster has no fault, and each thing that is broken is named with its remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.fake_reach import FakeReach, call

from finetune_operator.meta import API_VERSION, Object

DEFAULT = {"storageclass.kubernetes.io/is-default-class": "true"}
CARD = {"feature.node.kubernetes.io/pci-10de.present": "true"}
ACCOUNT = "system:serviceaccount:finetune-system:finetune-operator"


def node(
    name: str = "one",
    *,
    ready: str = "True",
    labels: dict[str, str] | None = None,
    gpus: str = "0",
    resource: str = "nvidia.com/gpu",
) -> Object:
    status = {"conditions": [{"type": "Ready", "status": ready}], "allocatable": {"cpu": "8", resource: gpus}}
    return {"kind": "Node", "metadata": {"name": name, "labels": labels or {}}, "spec": {}, "status": status}


def operator(**status: Any) -> Object:
    metadata = {
        "name": "finetune-operator",
        "namespace": "finetune-system",
        "labels": {"app.kubernetes.io/name": "finetune-operator"},
    }
    template = {"spec": {"serviceAccountName": "finetune-operator"}}
    return {"kind": "Deployment", "metadata": metadata, "spec": {"replicas": 2, "template": template}, "status": status}


def storage(name: str = "standard", annotations: dict[str, str] | None = None) -> Object:
    return {"kind": "StorageClass", "metadata": {"name": name, "annotations": annotations or {}}}


def quota(resource: str, used: str, hard: str) -> Object:
    return {
        "kind": "ResourceQuota",
        "metadata": {"name": "team"},
        "status": {"hard": {resource: hard}, "used": {resource: used}},
    }


def healthy() -> FakeReach:
    cluster = FakeReach(node(gpus="4"), operator(availableReplicas=2), storage(annotations=DEFAULT))
    cluster.served = {
        API_VERSION: frozenset({"finetunejobs", "modelserves", "finetunejobs/status"}),
        "monitoring.coreos.com/v1": frozenset({"servicemonitors"}),
    }
    return cluster


def put(*objects: Object) -> Callable[[FakeReach], None]:
    """The cluster has these objects of their kinds, and no others."""

    def change(cluster: FakeReach) -> None:
        kinds = {o["kind"] for o in objects}
        kept = {key: o for key, o in cluster.objects.items() if key[0] not in kinds}
        cluster.objects = kept | {(o["kind"], o["metadata"]["name"]): o for o in objects}

    return change


def take(kind: str) -> Callable[[FakeReach], None]:
    def change(cluster: FakeReach) -> None:
        cluster.objects = {key: o for key, o in cluster.objects.items() if key[0] != kind}

    return change


def forbid(*rights: str) -> Callable[[FakeReach], None]:
    return lambda cluster: cluster.forbidden.update(rights)


def serve(api_version: str, *plurals: str) -> Callable[[FakeReach], None]:
    return lambda cluster: cluster.served.update({api_version: frozenset(plurals)})


FAULTS = {
    "no definitions": (serve(API_VERSION), "the cluster does not know finetunejobs.finetune.dev, modelserves.finetune.dev"),
    "one definition": (serve(API_VERSION, "finetunejobs"), "the cluster does not know modelserves.finetune.dev"),
    "no operator": (take("Deployment"), "no operator is installed: nobody acts on jobs"),
    "operator down": (
        put(operator(conditions=[{"type": "Available", "status": "False", "message": "no image"}])),
        "finetune-system/finetune-operator has no ready replica: no image",
    ),
    "operator has no rights": (
        forbid(f"{ACCOUNT} create jobs"),
        "the operator's service account may not create jobs in default",
    ),
    "no node": (take("Node"), "no node is ready: no pod starts"),
    "node away": (put(node(ready="Unknown")), "no node is ready: no pod starts"),
    "no device plugin": (put(node(labels=CARD)), "one: a GPU is in there, and none is offered to pods"),
    "no default class": (put(storage("fast")), "no storage class is the default; there are fast: a job that names none waits"),
    "no storage": (take("StorageClass"), "there is no storage class: no claim is ever bound"),
    "quota used up": (
        put(quota("requests.nvidia.com/gpu", "4", "4")),
        "the quota team leaves no requests.nvidia.com/gpu: 4 of 4 are used",
    ),
    "quota in other units": (
        put(quota("requests.memory", "1024Mi", "1Gi")),
        "leaves no requests.memory: 1024Mi of 1Gi are used",
    ),
    "no right to start": (forbid("create finetunejobs"), "you may not create finetunejobs in default: you can't start jobs"),
}
WARNINGS = {
    "no GPU": (put(node()), "no node offers a GPU: only jobs on CPUs start"),
    "one node away": (put(node(gpus="1"), node("two", ready="False")), "not ready, or cordoned: two"),
    "tainted": (
        put({**node(gpus="1"), "spec": {"taints": [{"effect": "NoSchedule"}]}}),
        "nodes with GPUs have taints: one",
    ),
    "two defaults": (put(storage("a", DEFAULT), storage("b", DEFAULT)), "several default storage classes: a, b"),
    "no Prometheus": (serve("monitoring.coreos.com/v1"), "no ServiceMonitor is known here: nothing collects metrics"),
    "no GPU for this team": (put(quota("requests.nvidia.com/gpu", "0", "0")), "leaves no requests.nvidia.com/gpu: 0 of 0"),
    "no queue": (serve("kueue.x-k8s.io/v1beta1", "localqueues"), "Kueue is installed, and default has no LocalQueue"),
    "no port-forward": (forbid("create pods/portforward"), "you may not create pods/portforward in default: `chat` is refused"),
    "no look at nodes": (lambda cluster: cluster.unreadable.add("Node"), "could not be looked at: Node is forbidden"),
}


def told(monkeypatch: pytest.MonkeyPatch, cluster: FakeReach) -> tuple[int, str]:
    result = call(monkeypatch, cluster, "doctor")
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


def test_nothing_is_wrong_with_a_healthy_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = told(monkeypatch, healthy())
    assert code == 0
    assert "nothing is wrong" in output
    assert "→" not in output
    assert "ready nodes offer 4 nvidia.com/gpu" in output


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    breaks, sentence = FAULTS[name]
    cluster = healthy()
    breaks(cluster)
    code, output = told(monkeypatch, cluster)
    assert code == 1
    assert sentence in output
    assert "→" in output
    assert "1 faults found" in output, "it names this fault alone"


@pytest.mark.parametrize("name", WARNINGS)
def test_what_some_will_miss_is_a_warning(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    breaks, sentence = WARNINGS[name]
    cluster = healthy()
    breaks(cluster)
    code, output = told(monkeypatch, cluster)
    assert code == 0
    assert sentence in output
    assert output.count("warning") == 1


def test_a_quota_on_what_jobs_do_not_take_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = healthy()
    put(quota("services.loadbalancers", "0", "0"))(cluster)
    assert "quota" not in told(monkeypatch, cluster)[1]


def test_slices_of_a_gpu_count_and_a_queue_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = healthy()
    put(node(gpus="7", resource="nvidia.com/mig-1g.10gb"), node("two", gpus="2", resource="amd.com/gpu"))(cluster)
    serve("kueue.x-k8s.io/v1beta1", "localqueues")(cluster)
    put({"kind": "LocalQueue", "metadata": {"name": "team"}})(cluster)
    _, output = told(monkeypatch, cluster)
    assert "ready nodes offer 7 nvidia.com/mig-1g.10gb, 2 amd.com/gpu" in output
    assert "queues of default: team" in output
