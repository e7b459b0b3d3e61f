"""What is trimmed away is read by nobody: decisions on trimmed objects are those on whole ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.builders import NOW, UID
from tests.serving import make_serve

from finetune_operator.api.modelserve import ModelServe
from finetune_operator.decision import Observed, Ref
from finetune_operator.decoding import UNREADABLE
from finetune_operator.finetunejob import observed as of_job
from finetune_operator.meta import Object
from finetune_operator.modelserve import observed as of_serve
from finetune_operator.trimmed import LARGEST, SHAPES, text_of, trimmed

TIME = "2026-11-23T14:00:00Z"
MANAGED = [{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:replicas": {}, "f:model": {}}, "f:metadata": {}}}]


def meta(name: str, owner: tuple[str, str], **labels: str) -> Object:
    reference = {"kind": owner[0], "name": "x", "uid": owner[1], "controller": True, "apiVersion": "v1"}
    return {
        "name": name,
        "namespace": "default",
        "uid": f"uid-{name}",
        "resourceVersion": "7",
        "generation": 2,
        "creationTimestamp": TIME,
        "labels": {f"finetune.dev/{k}": v for k, v in labels.items()} | {"app.kubernetes.io/managed-by": "finetune-operator"},
        "annotations": {"batch.kubernetes.io/job-completion-index": "1", "finetune.dev/model-uri": "pvc://m", "other": "x"},
        "ownerReferences": [reference],
        "managedFields": MANAGED,
        "finalizers": ["batch.kubernetes.io/job-tracking"],
    }


def condition(kind: str, **fields: str) -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": "Why", "message": "text", "lastTransitionTime": TIME, **fields}


def container(name: str, **state: Any) -> Object:
    state = state or {"terminated": {"exitCode": 3, "reason": "Error", "message": "{}", "startedAt": TIME, "finishedAt": TIME}}
    return {"name": name, "ready": False, "restartCount": 2, "image": "i", "imageID": "d", "state": state, "lastState": state}


def pods(labels: dict[str, str], owner: tuple[str, str]) -> list[Object]:
    states: tuple[Object, ...] = (
        {},
        {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
        {"running": {"startedAt": TIME}},
    )
    phases = ("Failed", "Pending", "Running")
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta(f"pod-{phase}", owner, **labels) | ({"deletionTimestamp": TIME} if phase == "Failed" else {}),
            "spec": {"nodeName": "n", "containers": [{"name": "step", "image": "i", "env": [{"name": "a", "value": "b"}]}]},
            "status": {
                "phase": phase,
                "reason": "Evicted" if phase == "Failed" else "",
                "message": "The node was low on resource",
                "startTime": TIME,
                "hostIP": "10.0.0.1",
                "conditions": [condition("DisruptionTarget"), condition("PodScheduled", status="False"), condition("Ready")],
                "initContainerStatuses": [container("load")],
                "containerStatuses": [container("sidecar"), container("step", **state)],
            },
        }
        for phase, state in zip(phases, states, strict=True)
    ]


def test_attempts_are_the_same() -> None:
    status = {"startTime": TIME, "active": 1, "succeeded": 0, "conditions": [condition("Failed")]}
    labels = {"run": "r", "step": "train", "attempt": "3"}
    job = {"kind": "Job", "metadata": meta("job", ("FineTuneJob", UID), **labels), "spec": {"suspend": True}, "status": status}
    whole = {"Job": (job,), "Pod": tuple(pods({"step": "train"}, ("Job", "uid-job")))}
    cut = {kind: tuple(map(trimmed, bodies)) for kind, bodies in whole.items()}
    assert json.dumps(cut) != json.dumps(whole)
    one, other = (of_job.observe(Observed(children), UID, NOW) for children in (whole, cut))
    assert one == other
    assert one.attempts
    assert one.live_pods


def test_revisions_are_the_same() -> None:
    serve = ModelServe.model_validate(make_serve())
    owner = ("ModelServe", serve.metadata.uid)
    status: Object = {"observedGeneration": 2, "replicas": 1, "readyReplicas": 1, "availableReplicas": 1, "updatedReplicas": 1}
    status["conditions"] = [condition("Progressing"), condition("ReplicaFailure")]
    spec = {"replicas": 2, "template": {"spec": {"containers": [{"name": "engine"}]}}}
    service = {"kind": "Service", "metadata": meta("facts", owner), "spec": {"selector": {"finetune.dev/revision": "r"}}}
    job = {"kind": "Job", "metadata": meta("gate", owner, revision="r"), "status": {"conditions": [condition("Complete")]}}
    whole = {
        "Deployment": ({"kind": "Deployment", "metadata": meta("d", owner, revision="r"), "spec": spec, "status": status},),
        "Service": (service,),
        "Job": (job,),
        "ControllerRevision": ({"kind": "ControllerRevision", "metadata": meta("c", owner, revision="r"), "data": spec},),
        "Pod": tuple(pods({"revision": "r", "gate": "r"}, ("Job", "uid-gate"))),
    }
    cut = {kind: tuple(map(trimmed, bodies)) for kind, bodies in whole.items()}
    named = Ref("Service", "facts")
    one = of_serve.observe(serve, Observed(whole, {named: service}))
    other = of_serve.observe(serve, Observed(cut, {named: trimmed(service)}))
    for world in (one, other):
        assert (world.live, sorted(world.records), sorted(world.gates)) == ("r", ["r"], ["gate"])
    assert one.gates == other.gates
    assert one.deployed["r"].pods == other.deployed["r"].pods
    assert {k: v for k, v in vars(one.deployed["r"]).items() if k != "body"} == {
        k: v for k, v in vars(other.deployed["r"]).items() if k != "body"
    }


@pytest.mark.parametrize("kind", ["FineTuneJob", "ModelServe"])
def test_of_our_own_objects_only_bookkeeping_goes(kind: str) -> None:
    body = {"apiVersion": "v", "kind": kind, "metadata": meta("x", ("Pod", "p")), "spec": {"a": [1]}, "status": {"b": 2}}
    found = trimmed(body)
    assert (found["spec"], found["status"], found["metadata"]["uid"]) == (body["spec"], body["status"], "uid-x")
    assert "other" not in found["metadata"]["annotations"]
    assert "resourceVersion" not in found["metadata"], "or each version would be news"
    fields = [{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]
    assert found["metadata"].get("managedFields") == (fields if kind == "ModelServe" else None)


def test_one_that_is_too_large_says_so() -> None:
    body = {"kind": "FineTuneJob", "metadata": meta("x", ("Pod", "p")), "spec": {"a": "x" * LARGEST}}
    found = json.loads(text_of(trimmed(body)))
    assert found["spec"] == {}
    assert found[UNREADABLE] == "the object is larger than 256 KiB; make it smaller"
    assert found["metadata"]["name"] == "x"


def test_what_was_cut_out_is_still_told() -> None:
    assert trimmed({"kind": "FineTuneJob", "metadata": meta("x", ("Pod", "p")), UNREADABLE: "deep"})[UNREADABLE] == "deep"


def test_each_kind_that_is_watched_has_its_shape() -> None:
    from finetune_operator.cache import KINDS
    from finetune_operator.watches import WATCHED

    assert set(SHAPES) == {*WATCHED, *KINDS}
