"""What is written down of a Deployment that an earlier release started, and which children a pass reads."""

from __future__ import annotations

from tests.serving import make_serve

from finetune_operator.api.modelserve import ModelServe
from finetune_operator.meta import Object
from finetune_operator.modelserve import objects, policy
from finetune_operator.modelserve.observed import AROUND, OF_A_REVISION

FOUND: Object = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {
        "name": "facts-r1",
        "namespace": "default",
        "uid": "u",
        "resourceVersion": "7",
        "labels": {"finetune.dev/revision": "r1"},
        "annotations": {"deployment.kubernetes.io/revision": "1", "team": "chat"},
        "ownerReferences": [{"kind": "ModelServe", "uid": "serve-uid"}],
        "managedFields": [{"manager": "finetune-operator"}],
    },
    "spec": {"replicas": 2},
    "status": {"readyReplicas": 2},
}


def test_what_is_kept_is_what_somebody_asked_for() -> None:
    kept = objects.as_found(FOUND)
    assert kept == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "facts-r1",
            "namespace": "default",
            "labels": {"finetune.dev/revision": "r1"},
            "annotations": {"team": "chat"},
            "ownerReferences": [{"kind": "ModelServe", "uid": "serve-uid"}],
        },
        "spec": {"replicas": 2},
    }
    bare = {**FOUND, "metadata": {k: v for k, v in FOUND["metadata"].items() if k != "annotations"}}
    assert "annotations" not in objects.as_found(bare)["metadata"]


def test_reads_ask_for_children_by_label_and_nothing_else_by_list() -> None:
    reads = policy.reads(ModelServe.model_validate(make_serve(model={"uri": "s3://b/p", "secretRef": {"name": "keys"}})))
    assert reads.kinds == (*OF_A_REVISION, *AROUND, "ConfigMap", "Pod")
    assert {(r.kind, r.name) for r in reads.named} == {("Service", "facts"), ("Secret", "keys")}
