"""What stands around the pods of a ModelServe: who may ask them, who sets their number, how many may be taken at once. Pure.

NetworkPolicy            always, unless the spec or the chart says no
HorizontalPodAutoscaler  with spec.autoscaling; it scales the ModelServe, not the Deployments, which come and go
PodDisruptionBudget      where two pods or more are wanted
NetworkPolicy            the same for the pods of a gateway (gateway.py)
HTTPRoute                with spec.route, where the cluster has such a kind: /v1 alone
                         ├─ weight ─► Service <name>: the live revision
                         └─ weight ─► Service <name>-<revision>: a candidate that takes a share
"""

from __future__ import annotations

from collections.abc import Iterator

from finetune_operator.api.access import USUAL, Autoscaling, Load, Route
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.meta import API_VERSION, Object
from finetune_operator.modelserve import gateway
from finetune_operator.modelserve.engines import ENGINES
from finetune_operator.modelserve.objects import PORT, owned, revision_labels, revision_name
from finetune_operator.modelserve.route import API
from finetune_operator.names import LABEL_REVISION, PORT_GATEWAY, PORT_HTTP, object_name, serve_labels
from finetune_operator.settings import Settings
from finetune_trainer.contract.places import claim_of


def wanted(serve: ModelServe, model: ResolvedModel | None, live: str | None, settings: Settings) -> Iterator[Object]:
    """The objects that a ModelServe is to have; others of these kinds that are its own are to go. `live` is the revision
    that takes the traffic.
    """
    if serve.spec.network.policy and settings.network_policies:
        yield network_policy(serve, model, settings)
    if (scaling := serve.spec.autoscaling) is not None and (scaling.min_replicas or scaling.max_replicas > 1):
        yield autoscaler(serve, scaling)
    if live is not None and (scaling.min_replicas if scaling else serve.spec.replicas) > 1:
        yield disruption_budget(serve, live)


def network_policy(serve: ModelServe, model: ResolvedModel | None, settings: Settings) -> Object:
    """The namespace's own pods may ask, among them the gate's, and whom spec and chart name. Pods whose model lies on a claim
    ask nobody; those of another must fetch it, and those that keep answers ask the Redis, wherever that is.
    """
    peers = [{"podSelector": {}}, *serve.spec.network.allow_from]
    if settings.monitoring_namespace:
        peers.append({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.monitoring_namespace}}})
    on_claim = model is not None and claim_of(model.uri) is not None
    spec: Object = {
        # The pods of revisions: those of a gate have no such label.
        "podSelector": {
            "matchLabels": serve_labels(serve.metadata.name),
            "matchExpressions": [{"key": LABEL_REVISION, "operator": "Exists"}],
        },
        "policyTypes": ["Ingress", "Egress"] if on_claim and serve.spec.response_cache is None else ["Ingress"],
        "ingress": [{"from": peers, "ports": [{"port": PORT_HTTP, "protocol": "TCP"}]}],
    }
    return _around(serve, "networking.k8s.io/v1", "NetworkPolicy", spec)


def gateway_policy(serve: ModelServe, model: ResolvedModel | None, settings: Settings) -> Object:
    """The same of the gateway's pods, which take the requests instead, and ask the others."""
    selected, policy = {"matchLabels": gateway.selector(serve)}, network_policy(serve, model, settings)
    (ingress,) = policy["spec"]["ingress"]
    ports = [{"port": PORT_GATEWAY, "protocol": "TCP"}]
    spec = {"podSelector": selected, "policyTypes": ["Ingress"], "ingress": [{**ingress, "ports": ports}]}
    return {**policy, "metadata": gateway.meta(serve, gateway.GATEWAY), "spec": spec}


def autoscaler(serve: ModelServe, scaling: Autoscaling) -> Object:
    """It asks for the average over the pods that the ModelServe's scale subresource selects: those of the live revision."""
    target = scaling.target or USUAL[scaling.metric]
    if scaling.metric is Load.CPU:
        percent = {"type": "Utilization", "averageUtilization": int(target)}
        metric: Object = {"type": "Resource", "resource": {"name": "cpu", "target": percent}}
    else:
        name = ENGINES[serve.spec.engine.type].loads[scaling.metric]
        average = {"type": "AverageValue", "averageValue": target}
        metric = {"type": "Pods", "pods": {"metric": {"name": name}, "target": average}}
    spec = {
        "scaleTargetRef": {"apiVersion": API_VERSION, "kind": "ModelServe", "name": serve.metadata.name},
        "minReplicas": scaling.awake_replicas,
        "maxReplicas": scaling.max_replicas,
        "metrics": [metric],
    }
    return _around(serve, "autoscaling/v2", "HorizontalPodAutoscaler", spec)


def disruption_budget(serve: ModelServe, live: str) -> Object:
    """One pod at a time; one that does not answer anyway holds up no drain."""
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": revision_labels(serve, live)},
    }
    return _around(serve, "policy/v1", "PodDisruptionBudget", spec)


def http_route(serve: ModelServe, wanted: Route, candidate: str | None = None, share: int = 0) -> Object:
    """Leads `share` percent to a candidate, and the rest to what the stable Service selects."""
    backends = [_backend(object_name(serve.metadata.name))]
    if candidate is not None:
        stable = _backend(object_name(serve.metadata.name), 100 - share)
        backends = [stable, _backend(revision_name(serve, candidate), share)]
    spec: Object = {
        "parentRefs": [wanted.gateway.model_dump(by_alias=True, exclude_none=True)],
        "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": API}}], "backendRefs": backends}],
    }
    if wanted.hostname is not None:
        spec["hostnames"] = [wanted.hostname]
    return _around(serve, "gateway.networking.k8s.io/v1", "HTTPRoute", spec)


def _backend(service: str, weight: int = 1) -> Object:
    return {"name": service, "port": PORT, "weight": weight}


def _around(serve: ModelServe, api_version: str, kind: str, spec: Object) -> Object:
    meta = owned(serve, object_name(serve.metadata.name), {})
    return {"apiVersion": api_version, "kind": kind, "metadata": meta, "spec": spec}
