"""What is wrong with a cluster for fine-tuning and serving, each finding with its remedy. Pure: checkup.py reads the facts.

A Fault keeps jobs from running; a Warning is something that some jobs, or some people, will miss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from finetune_operator.cli.kinds import Right
from finetune_operator.meta import GROUP, Object, quantity_of

OUR_PLURALS = frozenset({"finetunejobs", "modelserves"})
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
HAS_CARD = ("feature.node.kubernetes.io/pci-10de.present", "nvidia.com/gpu.present")  # labels of node feature discovery
INSTALL = "kubectl apply --server-side -f install/install.yaml, or the chart"
TAKEN = frozenset({"pods", "cpu", "memory", "configmaps", "persistentvolumeclaims", "count/jobs.batch", "count/pods"})
NEEDED = {
    Right("create", "FineTuneJob"): "you can't start jobs",
    Right("list", "FineTuneJob"): "you don't see jobs",
    Right("patch", "FineTuneJob"): "`cancel` is refused to you",
    Right("list", "ModelServe"): "you don't see what is served",
    Right("patch", "ModelServe"): "`promote` and `rollback` are refused to you",
    Right("list", "Pod"): "`logs` is refused to you",
    Right("get", "Pod", "log"): "`logs` is refused to you",
    Right("create", "Pod", "portforward"): "`chat` is refused to you",
}
OPERATORS = (
    Right("update", "FineTuneJob", "status"),
    Right("create", "Job"),
    Right("create", "ConfigMap"),
    Right("list", "Pod"),
)


class Level(Enum):
    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    level: Level
    about: str
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Facts:
    """What was read. None: whoever asks may not read it."""

    namespace: str
    ours: frozenset[str]  # plural names of what the API server serves of our group
    operators: Sequence[Object] | None = ()  # Deployments
    operator_lacks: Sequence[Right] | None = ()  # of OPERATORS, for its service account in this namespace
    nodes: Sequence[Object] | None = ()
    storage_classes: Sequence[Object] | None = ()
    quotas: Sequence[Object] | None = ()
    refused: Sequence[Right] = ()  # of NEEDED, for whoever asks
    monitors: bool = False  # whether the kinds of the Prometheus operator are served
    queues: Sequence[Object] | None = None  # LocalQueues of the namespace; None where Kueue is not installed
    unread: Mapping[str, str] = field(default_factory=dict)  # what could not be read, and why


def examine(facts: Facts) -> list[Finding]:
    """All findings, those that are well too."""
    return [finding for check in CHECKS for finding in check(facts)] + [
        Finding(Level.WARNING, about, f"could not be looked at: {why}", "ask somebody with the role `view` of the cluster")
        for about, why in facts.unread.items()
    ]


def _definitions(facts: Facts) -> Iterator[Finding]:
    if missing := sorted(OUR_PLURALS - facts.ours):
        names = ", ".join(f"{plural}.{GROUP}" for plural in missing)
        yield Finding(Level.FAULT, "definitions", f"the cluster does not know {names}", INSTALL)
    else:
        yield Finding(Level.OK, "definitions", "both kinds are known")


def _operator(facts: Facts) -> Iterator[Finding]:
    if facts.operators is None:
        return
    if not facts.operators:
        yield Finding(Level.FAULT, "operator", "no operator is installed: nobody acts on jobs", INSTALL)
    for deployment in facts.operators:
        metadata, status = deployment["metadata"], deployment.get("status") or {}
        name, ready = f"{metadata['namespace']}/{metadata['name']}", status.get("availableReplicas") or 0
        if ready:
            yield Finding(Level.OK, "operator", f"{name}: {ready} of {deployment['spec'].get('replicas', 1)} replicas ready")
            continue
        why = "; ".join(str(c.get("message")) for c in status.get("conditions") or [] if c.get("status") == "False")
        remedy = f"kubectl -n {metadata['namespace']} get pods, describe and logs: images and CRDs are the usual causes"
        yield Finding(Level.FAULT, "operator", f"{name} has no ready replica: {why or 'no controller has seen it'}", remedy)


def _operators_rights(facts: Facts) -> Iterator[Finding]:
    if facts.operator_lacks:
        lacking = ", ".join(map(str, facts.operator_lacks))
        text = f"the operator's service account may not {lacking} in {facts.namespace}"
        yield Finding(Level.FAULT, "operator's rights", text, f"{INSTALL}; with watchNamespace it serves that namespace alone")


def _nodes(facts: Facts) -> Iterator[Finding]:
    if facts.nodes is None:
        return
    ready = [node for node in facts.nodes if _is_ready(node)]
    away = sorted(node["metadata"]["name"] for node in facts.nodes if not _is_ready(node))
    if not ready:
        yield Finding(Level.FAULT, "nodes", "no node is ready: no pod starts", "kubectl describe nodes")
    else:
        yield Finding(Level.OK, "nodes", f"{len(ready)} ready")
    if ready and away:
        yield Finding(
            Level.WARNING, "nodes", f"not ready, or cordoned: {_few(away)}", "kubectl describe node; kubectl uncordon"
        )


def _gpus(facts: Facts) -> Iterator[Finding]:
    if facts.nodes is None:
        return
    offered: dict[str, int] = {}
    for node in filter(_is_ready, facts.nodes):
        for resource, count in _gpus_of(node).items():
            offered[resource] = offered.get(resource, 0) + count
    idle = sorted(n["metadata"]["name"] for n in facts.nodes if _has_card(n) and not any(_gpus_of(n).values()))
    if idle:
        text = f"{_few(idle)}: a GPU is in there, and none is offered to pods"
        remedy = "install NVIDIA's GPU operator, or look at its pods: kubectl get pods -A -l app=nvidia-device-plugin-daemonset"
        yield Finding(Level.FAULT, "GPUs", text, remedy)
    if sum(offered.values()):
        told = ", ".join(f"{count} {resource}" for resource, count in offered.items() if count)
        yield Finding(Level.OK, "GPUs", f"ready nodes offer {told}")
    elif not idle:
        remedy = "install NVIDIA's GPU operator (or device plugin); without it set spec.parallelism.gpusPerNode: 0"
        yield Finding(Level.WARNING, "GPUs", "no node offers a GPU: only jobs on CPUs start", remedy)
    tainted = sorted(n["metadata"]["name"] for n in facts.nodes if any(_gpus_of(n).values()) and _taints(n))
    if tainted:
        remedy = "tolerations in the chart's profiles, or in the job's podTemplate"
        yield Finding(Level.WARNING, "GPUs", f"nodes with GPUs have taints: {_few(tainted)}", remedy)


def _storage(facts: Facts) -> Iterator[Finding]:
    if facts.storage_classes is None:
        return
    default = [c["metadata"]["name"] for c in facts.storage_classes if _is_default(c)]
    names = sorted(c["metadata"]["name"] for c in facts.storage_classes)
    if len(default) == 1:
        yield Finding(Level.OK, "storage", f"{default[0]} is the default storage class")
    elif default:
        remedy = f"leave the annotation {DEFAULT_CLASS} on one of them"
        yield Finding(Level.WARNING, "storage", f"several default storage classes: {_few(sorted(default))}", remedy)
    elif names:
        text = f"no storage class is the default; there are {_few(names)}: a job that names none waits for its claim for ever"
        remedy = f"kubectl annotate storageclass NAME {DEFAULT_CLASS}=true, or spec.storage.artifacts.storageClassName or uri"
        yield Finding(Level.FAULT, "storage", text, remedy)
    else:
        remedy = "install a CSI driver, or keep results in a bucket: spec.storage.artifacts.uri"
        yield Finding(Level.FAULT, "storage", "there is no storage class: no claim is ever bound", remedy)


def _quota(facts: Facts) -> Iterator[Finding]:
    for quota in facts.quotas or ():
        status = quota.get("status") or {}
        for resource, hard in (status.get("hard") or {}).items():
            used = (status.get("used") or {}).get(resource, "0")
            limit, taken = quantity_of(hard), quantity_of(used)
            if _counts(resource) and limit is not None and taken is not None and taken >= limit:
                text = f"the quota {quota['metadata']['name']} leaves no {resource}: {used} of {hard} are used"
                remedy = "end what is not needed (kubectl finetune status), or have the quota raised; new pods wait"
                yield Finding(Level.FAULT if limit else Level.WARNING, "quota", text, remedy)


def _rights(facts: Facts) -> Iterator[Finding]:
    for right in facts.refused:
        level = Level.FAULT if right == Right("create", "FineTuneJob") else Level.WARNING
        text = f"you may not {right} in {facts.namespace}: {NEEDED[right]}"
        yield Finding(level, "your rights", text, "a RoleBinding to the ClusterRole `edit` in this namespace")
    if not facts.refused:
        yield Finding(Level.OK, "your rights", f"all that the commands need in {facts.namespace}")


def _prometheus(facts: Facts) -> Iterator[Finding]:
    if facts.monitors:
        yield Finding(Level.OK, "Prometheus", "monitors are known")
    else:
        remedy = "install the Prometheus operator, then helm upgrade; or scrape by annotation: docs/values.md"
        yield Finding(Level.WARNING, "Prometheus", "no ServiceMonitor is known here: nothing collects metrics", remedy)


def _queues(facts: Facts) -> Iterator[Finding]:
    if facts.queues is None:
        return
    if facts.queues:
        names = _few(sorted(q["metadata"]["name"] for q in facts.queues))
        yield Finding(Level.OK, "Kueue", f"queues of {facts.namespace}: {names}")
    else:
        remedy = "ask for a LocalQueue, or leave spec.scheduling.queueName out"
        yield Finding(Level.WARNING, "Kueue", f"Kueue is installed, and {facts.namespace} has no LocalQueue", remedy)


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _definitions,
    _operator,
    _operators_rights,
    _rights,
    _nodes,
    _gpus,
    _storage,
    _quota,
    _queues,
    _prometheus,
)


def _is_ready(node: Object) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
    return ready and not (node.get("spec") or {}).get("unschedulable")


def _gpus_of(node: Object) -> dict[str, int]:
    """How many of each kind a node offers: nvidia.com/gpu, amd.com/gpu, slices such as nvidia.com/mig-1g.10gb."""
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    gpus = {name: quantity_of(count) for name, count in allocatable.items() if name.endswith("/gpu") or "/mig-" in name}
    return {name: int(count or 0) for name, count in gpus.items()}


def _has_card(node: Object) -> bool:
    labels = node["metadata"].get("labels") or {}
    return any(labels.get(name) == "true" for name in HAS_CARD)


def _taints(node: Object) -> bool:
    taints = (node.get("spec") or {}).get("taints") or []
    return any(taint.get("effect") in ("NoSchedule", "NoExecute") for taint in taints)


def _counts(resource: str) -> bool:
    """Whether our pods, Jobs and claims take some of it."""
    return resource in TAKEN or resource.startswith(("requests.", "limits."))


def _is_default(storage_class: Object) -> bool:
    return (storage_class["metadata"].get("annotations") or {}).get(DEFAULT_CLASS) == "true"


def _few(names: Iterable[str], most: int = 5) -> str:
    """Some of them, and how many there are besides."""
    first, *rest = [*names][:most], [*names][most:]
    return ", ".join(first) + (f" and {len(rest[0])} more" if rest[0] else "")
