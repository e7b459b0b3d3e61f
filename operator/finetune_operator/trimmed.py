"""What we read of an object, and nothing more: the rest is neither kept in memory nor reason for a pass.

A field that a policy or an `observed` module reads must be named here: tests/unit/test_trimmed.py holds the two together.
"""

from __future__ import annotations

import json
from typing import Any

from finetune_operator.decoding import UNREADABLE
from finetune_operator.meta import ENDS, GROUP, Object
from finetune_trainer.contract.served_adapters import WANTED

LARGEST = 262144  # characters of one trimmed object; ours have some thousand

Shape = dict[str, Any]  # field: True for all of it, a Shape, or a list of one Shape for each item
ALL = True

_OWNER: Shape = {"apiVersion": ALL, "kind": ALL, "name": ALL, "uid": ALL, "controller": ALL, "blockOwnerDeletion": ALL}
_META: Shape = {
    **dict.fromkeys(("name", "namespace", "uid", "generation", "creationTimestamp", "deletionTimestamp", "labels"), ALL),
    "annotations": ALL,  # of these, _notes keeps ours
    "ownerReferences": [_OWNER],
}
_CONDITIONS = [dict.fromkeys(("type", "status", "reason", "message", "lastTransitionTime"), ALL)]
_STATE: Shape = {
    "waiting": {"reason": ALL, "message": ALL},
    "running": {"startedAt": ALL},
    "terminated": dict.fromkeys(("exitCode", "reason", "message", "startedAt", "finishedAt"), ALL),
}
_CONTAINERS = [{"name": ALL, "ready": ALL, "started": ALL, "restartCount": ALL, "state": _STATE, "lastState": _STATE}]
SHAPES: dict[str, Shape] = {
    "Pod": {
        "spec": {"nodeName": ALL, "containers": [{"name": ALL, "resources": ALL}], "volumes": [{"name": ALL, "emptyDir": ALL}]},
        "status": {
            **dict.fromkeys(("phase", "reason", "message", "startTime"), ALL),
            "conditions": _CONDITIONS,
            "initContainerStatuses": _CONTAINERS,
            "containerStatuses": _CONTAINERS,
        },
    },
    "Job": {
        "spec": {"suspend": ALL},
        "status": {"startTime": ALL, "conditions": _CONDITIONS},
    },
    "Deployment": {
        "spec": ALL,
        "status": {
            **dict.fromkeys(("observedGeneration", "replicas", "readyReplicas", "availableReplicas"), ALL),
            "conditions": [dict.fromkeys(("type", "status", "reason", "message"), ALL)],
        },
    },
    "Service": {"spec": ALL},
    "NetworkPolicy": {"spec": ALL},
    "HorizontalPodAutoscaler": {"spec": ALL},
    "PodDisruptionBudget": {"spec": ALL},
    "HTTPRoute": {"spec": ALL, "status": {"parents": [{"parentRef": ALL, "conditions": _CONDITIONS}]}},
    "ControllerRevision": {"data": ALL},
    "ConfigMap": {"data": {WANTED: ALL}},  # of that of the adapters alone
    # Who else sets the replicas is told by the managed fields alone.
    "ModelServe": {
        "spec": ALL,
        "status": ALL,
        "metadata": {"managedFields": [{"manager": ALL, "fieldsV1": {"f:spec": {"f:replicas": ALL}}}]},
    },
    "FineTuneJob": {"spec": ALL, "status": ALL},
}
READ = {  # types of the conditions that are read
    "Pod": ("PodScheduled", "PodReadyToStartContainers", "Ready", "DisruptionTarget"),
    "Job": ENDS,
}
NOTES = (GROUP, "batch.kubernetes.io/")  # annotations that we read begin so


def trimmed(body: Object) -> Object:
    """A new object with what we read of this kind. One that is too large has no spec, and UNREADABLE says so."""
    shape = SHAPES[body["kind"]]
    whole = {"apiVersion": ALL, "kind": ALL, **shape, "metadata": {**_META, **shape.get("metadata", {})}, UNREADABLE: ALL}
    found: Object = _picked(body, whole)
    notes = found["metadata"].pop("annotations", None) or {}
    if kept := {k: v for k, v in notes.items() if k.startswith(NOTES)}:
        found["metadata"]["annotations"] = kept
    if (read := READ.get(body["kind"])) is not None and (told := (found.get("status") or {}).get("conditions")):
        found["status"]["conditions"] = [condition for condition in told if condition["type"] in read]
    return found


def text_of(body: Object) -> str:
    """A trimmed object as the cache keeps it."""
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    if len(text) <= LARGEST:
        return text
    reason = f"the object is larger than {LARGEST // 1024} KiB; make it smaller"
    meta = {k: v for k, v in body["metadata"].items() if k not in ("labels", "annotations", "managedFields")}
    rest = {"apiVersion": body.get("apiVersion"), "kind": body["kind"], "metadata": meta, "spec": {}, UNREADABLE: reason}
    return json.dumps(rest, separators=(",", ":"), ensure_ascii=False)


def _picked(value: Any, shape: Any) -> Any:
    if shape is ALL:
        return value
    if isinstance(shape, list):
        return [_picked(item, shape[0]) for item in value] if isinstance(value, list) else None
    return {k: _picked(value[k], s) for k, s in shape.items() if k in value} if isinstance(value, dict) else None
