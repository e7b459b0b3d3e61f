"""No right is given that nothing uses: the verbs of the chart's ClusterRole against those that the operator asked with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from tests.integration.conftest import chart

METHODS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "WATCH": "watch"}
# What the two stories have no occasion for, and where it is used.
ELSEWHERE = {
    "finetunejobs delete": "spec.ttlSecondsAfterFinished: tests/e2e/test_lifecycle.py",
    "finetunejobs/finalizers update": "asked by the API server's own admission, where owner references block a deletion",
    "modelserves/finalizers update": "likewise",
    "pods/log get": "the sweep answers it, as no kubelet is there",
    "jobs get": "what a create finds there, or no watch told of: where a fault strikes just that write",
    "controllerrevisions get": "what a create finds there: where a fault strikes just that write",
    "configmaps patch": "spec.lora: tests/integration/test_adapters.py",
    "pods patch": "likewise",
    "secrets get": "spec.model.secretRef: tests/integration/test_walks.py",
    "events list": "a Job whose pods a quota refuses: tests/integration/test_quota.py",
    "horizontalpodautoscalers create": "spec.autoscaling: tests/integration/test_tampering.py",
    "horizontalpodautoscalers patch": "likewise",
    "horizontalpodautoscalers delete": "likewise",
    **{
        f"httproutes {word}": "an API that the sweep has not installed"
        for word in ("get", "watch", "create", "patch", "delete")
    },
    "localqueues get": "spec.scheduling.queueName: tests/integration/test_queues.py",
    "networkpolicies delete": "spec.network.policy: likewise",
    "poddisruptionbudgets delete": "fewer than two replicas: likewise",
    **{
        f"httproutes {verb}": "spec.route, where the cluster has the kind: tests/integration/test_canary.py"
        for verb in ("get", "list", "watch", "create", "patch", "delete")
    },
}


def verbs(method: str, path: str, resource: str, status: int) -> Iterator[str]:
    """The verbs that the API server asked its authorizer about for a request, unless that said no."""
    if status in (401, 403):
        return
    if method == "GET":
        yield "list" if path.rstrip("/").endswith(f"/{resource}") else "get"
    else:
        yield METHODS[method]
    if method == "PATCH" and status == 201:  # an apply of what was not there
        yield "create"


def unused(used: Mapping[str, Set[str]]) -> list[str]:
    """Rights of the chart that were used neither here nor elsewhere."""
    (role,) = (o for o in chart() if o["kind"] == "ClusterRole" and "aggregate" not in str(o["metadata"].get("labels")))
    given = {f"{resource} {word}" for rule in role["rules"] for resource in rule["resources"] for word in rule["verbs"]}
    return sorted(given - {f"{resource} {word}" for resource, words in used.items() for word in words} - set(ELSEWHERE))
