"""What the operator creates for a ModelServe, as manifests: Deployment and Service of a revision, stable Service, gate."""

from __future__ import annotations

import copy

from finetune_operator.api.modelserve import ModelServe
from finetune_operator.meta import API_VERSION, Object
from finetune_operator.modelserve.history import History, rendered
from finetune_operator.modelserve.plan import Target
from finetune_operator.modelserve.startup import budget
from finetune_operator.names import (
    ANNOTATION_HISTORY,
    ANNOTATION_MODEL_DIGEST,
    ANNOTATION_MODEL_URI,
    LABEL_REVISION,
    PORT_HTTP,
    object_name,
    serve_labels,
)

PORT = 8000  # of every Service, whatever the engine: a URL survives a change of engine


def deployment(serve: ModelServe, target: Target) -> Object:
    """The pods of one revision. Its template never changes: another template is another revision."""
    labels = revision_labels(serve, target.revision)
    template = copy.deepcopy(target.template)
    template["metadata"]["labels"] |= labels
    annotations = {ANNOTATION_MODEL_URI: target.model.uri}
    if target.model.digest is not None:
        annotations[ANNOTATION_MODEL_DIGEST] = target.model.digest
    meta = owned(serve, revision_name(serve, target.revision), labels)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**meta, "annotations": annotations},
        "spec": {
            "replicas": serve.spec.replicas,
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": budget(serve.spec, target.model).deadline,
            "selector": {"matchLabels": labels},
            "template": template,
        },
    }


def as_found(deployed: Object) -> Object:
    """The Deployment of a revision that has no record, as it is: an earlier release started it."""
    kept = ("name", "namespace", "labels", "annotations", "ownerReferences")
    meta = {k: v for k, v in deployed["metadata"].items() if k in kept}
    if "annotations" in meta:  # not ours: its controller's
        meta["annotations"] = {k: v for k, v in meta["annotations"].items() if not k.startswith("deployment.")}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": deployed["spec"]}


def scaled(manifest: Object, replicas: int) -> Object:
    """A Deployment with so many replicas."""
    return {**manifest, "spec": {**manifest["spec"], "replicas": replicas}}


def record(serve: ModelServe, revision: str, manifest: Object) -> Object:
    """What a revision's Deployment is: neither the spec, which moves on, nor the Deployment, which others can edit, tells."""
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": owned(serve, revision_name(serve, revision), {LABEL_REVISION: revision}),
        "revision": 1,
        "data": manifest,
    }


def revision_service(serve: ModelServe, revision: str) -> Object:
    """Where the gate reaches a revision that takes no traffic yet."""
    return _service(serve, revision_name(serve, revision), revision, {LABEL_REVISION: revision})


def stable_service(serve: ModelServe, revision: str, history: History, *, shared: bool) -> Object:
    """The address that users have; it selects the live revision, and tells which were before. `shared` with a candidate, it
    selects the pods of all revisions: those of gates and watches, which it selects as well, have no port of its name.
    """
    service = _service(serve, object_name(serve.metadata.name), revision, {})
    if shared:
        service["spec"]["selector"] = serve_labels(serve.metadata.name)
    service["metadata"]["annotations"] = {ANNOTATION_HISTORY: rendered(history)}
    return service


def revision_name(serve: ModelServe, revision: str) -> str:
    return object_name(serve.metadata.name, revision)


def revision_labels(serve: ModelServe, revision: str) -> dict[str, str]:
    """Labels of a revision's pods: what the Services select, and what an autoscaler counts."""
    return {**serve_labels(serve.metadata.name), LABEL_REVISION: revision}


def service_url(serve: ModelServe, service: str) -> str:
    """OpenAI API behind a Service."""
    return f"http://{service}.{serve.metadata.namespace}.svc:{PORT}/v1"


def _service(serve: ModelServe, name: str, revision: str, labels: dict[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owned(serve, name, labels),
        "spec": {
            "selector": revision_labels(serve, revision),
            "ports": [{"name": "http", "port": PORT, "targetPort": PORT_HTTP}],
        },
    }


def owned(serve: ModelServe, name: str, labels: dict[str, str]) -> Object:
    owner = {
        "apiVersion": API_VERSION,
        "kind": "ModelServe",
        "name": serve.metadata.name,
        "uid": serve.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": name,
        "namespace": serve.metadata.namespace,
        "labels": {**serve_labels(serve.metadata.name), **labels},
        "ownerReferences": [owner],
    }
