"""Where objects of each kind live in the API."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.meta import API_VERSION


@dataclass(frozen=True)
class Resource:
    """Where objects of a kind live in the API."""

    api_version: str
    plural: str

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Path of the collection, of one object, or of its subresource; an empty namespace is all of them."""
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        parts = (f"namespaces/{namespace}" if namespace else "", self.plural, name, subresource)
        return "/".join((root, *(p for p in parts if p)))


RESOURCES = {
    "ConfigMap": Resource("v1", "configmaps"),
    "PersistentVolumeClaim": Resource("v1", "persistentvolumeclaims"),
    "Pod": Resource("v1", "pods"),
    "Secret": Resource("v1", "secrets"),
    "Service": Resource("v1", "services"),
    "Job": Resource("batch/v1", "jobs"),
    "Deployment": Resource("apps/v1", "deployments"),
    "ControllerRevision": Resource("apps/v1", "controllerrevisions"),
    "NetworkPolicy": Resource("networking.k8s.io/v1", "networkpolicies"),
    "HorizontalPodAutoscaler": Resource("autoscaling/v2", "horizontalpodautoscalers"),
    "PodDisruptionBudget": Resource("policy/v1", "poddisruptionbudgets"),
    "HTTPRoute": Resource("gateway.networking.k8s.io/v1", "httproutes"),
    "Lease": Resource("coordination.k8s.io/v1", "leases"),
    "Event": Resource("events.k8s.io/v1", "events"),
    "FineTuneJob": Resource(API_VERSION, "finetunejobs"),
    "ModelServe": Resource(API_VERSION, "modelserves"),
}
