"""Kubeflow's training-operator, to be measured beside ours: built from its published module, with the rights that it asks for.

Its webhook is never called, as no Service leads to it; it wants its certificates all the same, and waits until they lie where a
kubelet would have put them.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from localcluster import settings, toolchain
from simulated import SPACE, Object, Played
from tests.integration.conftest import Operator, World
from tests.waiting import wait_until

NAMESPACE, NAME = "kubeflow", "training-operator"
MODULE = "github.com/kubeflow/training-operator"
WEBHOOK, SECRET = "validator.training-operator.kubeflow.org", "training-operator-webhook-cert"
CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")  # as its program has it
REPLACED = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
WORKING = 'Starting workers\t{"controller": "pytorchjob-controller"'
FLAGS = ("--enable-scheme=pytorchjob", "--metrics-bind-address=0", "--health-probe-bind-address=0")
JOBS = f"/apis/kubeflow.org/v1/namespaces/{SPACE}/pytorchjobs"
OF_ITS_PODS = "training.kubeflow.org%2Foperator-name%3Dpytorchjob-controller"


def job(number: int) -> Object:
    """A PyTorchJob of one pod, which the namespace's pod security takes."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "runAsUser": 10001}
    container = {
        "name": "pytorch",
        "image": "none",
        "securityContext": {**security, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    master = {"replicas": 1, "restartPolicy": "Never", "template": {"spec": {"containers": [container]}}}
    meta = {"name": f"job-{number}", "namespace": SPACE}
    spec = {"pytorchReplicaSpecs": {"Master": master}}
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": meta, "spec": spec}


PLAYED = Played(
    objects=JOBS,
    body=job,
    selector=OF_ITS_PODS,
    container="pytorch",
    children=f"/api/v1/namespaces/{SPACE}/pods?labelSelector={OF_ITS_PODS}",
    label="training.kubeflow.org/job-name",
    over=lambda pod: bool(pod["status"].get("phase") == "Succeeded"),
)


def started(world: World) -> Operator:
    """The operator at work, behind a proxy of its own."""
    shutil.rmtree(CERTIFICATES, ignore_errors=True)  # of an earlier run
    token = _installed(world)
    program = ("-c", REPLACED, str(toolchain.binary(settings.read().cache, "training-operator.v1")), *FLAGS)
    directory = Path(tempfile.mkdtemp(prefix="training-operator-"))
    operator = Operator(world, directory, program, {"MY_POD_NAMESPACE": NAMESPACE})
    operator.proxy.headers = {"Authorization": f"Bearer {token}"}
    operator.start()
    secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/{SECRET}"
    wait_until("it has made its certificates", lambda: "tls.crt" in (world.read(secret).get("data") or {}), 60)
    CERTIFICATES.mkdir(parents=True, exist_ok=True)
    for name, text in world.read(secret)["data"].items():
        (CERTIFICATES / name).write_bytes(base64.b64decode(text))
    wait_until("it works", lambda: WORKING in operator.log, 180)
    return operator


def _installed(world: World) -> str:
    """The token of its service account, once all that it needs is there."""
    world.namespace(NAMESPACE)
    version = toolchain.PROGRAMS["training-operator.v1"].version
    manifests = toolchain.module(settings.read().cache, MODULE, version) / "manifests" / "base"
    for file in ("crds/kubeflow.org_pytorchjobs.yaml", "rbac/role.yaml"):
        world.kubectl("apply", "--server-side", "-f", str(manifests / file))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as written:
        json.dump({"apiVersion": "v1", "kind": "List", "items": _objects()}, written)
        written.flush()
        world.kubectl("apply", "--server-side", "-f", written.name)
    request: Object = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
    found = world.api.request("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{NAME}/token", request)
    return str(found["status"]["token"])


def _objects() -> list[Object]:
    here: Any = {"name": NAME, "namespace": NAMESPACE}
    hook = {
        "name": WEBHOOK,
        "clientConfig": {"service": here},
        "rules": [{"apiGroups": ["kubeflow.org"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["none"]}],
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Ignore",
    }
    hooks = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": here},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE}},
        hooks | {"metadata": {"name": WEBHOOK}, "webhooks": [hook]},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", **here}],
        },
    ]
