"""The same questions to the base model and to the served one.

The base model is not served. Its answers are those of the evaluate step, which put the test rows to it in the same way
(greedy, at most as many new tokens); they are read from the artifact store by a pod. The served model is asked now.
"""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import dataclass

from demo.console import DemoFailed
from demo.kubectl import Kubectl, KubectlFailed, Object

POD = "base-answers"
POD_SECONDS = 120
ANSWER_SECONDS = 60
# Follows an evaluate step's manifest to the base model's own entry, which holds every answer.
READ = """
import json, sys
from pathlib import Path
entries = Path(sys.argv[1]) / 'evaluate'
evaluation = json.loads((entries / sys.argv[2] / 'manifest.json').read_text())
base = entries / evaluation['inputs']['base']
print((base / json.loads((base / 'manifest.json').read_text())['prefix'] / 'rows.jsonl').read_text(), end='')
"""


@dataclass(frozen=True)
class Row:
    """One question of the test rows, and three answers to it."""

    question: str
    reference: str
    base: str
    served: str


def ask(kubectl: Kubectl, job: Object, image: str) -> list[Row]:
    """Every test question of the job, answered by both models. Raises DemoFailed where one can't be reached."""
    namespace = job["metadata"]["namespace"]
    rows = test_rows(kubectl, job)
    base = [line["answer"] for line in base_answers(kubectl, job, image)]
    if len(base) != len(rows):
        raise DemoFailed(f"the store holds {len(base)} answers of the base model to {len(rows)} questions: evaluate anew")
    serving = job["status"]["serving"]["name"]
    tokens = job["spec"]["evaluation"]["maxNewTokens"]
    with kubectl.forward(serving, namespace, 8000) as port:
        served = [complete(port, serving, row["prompt"], tokens) for row in rows]
    return [Row(r["prompt"], r["completion"], b, s) for r, b, s in zip(rows, base, served, strict=True)]


def test_rows(kubectl: Kubectl, job: Object) -> list[dict[str, str]]:
    """The rows of the ConfigMap that spec.dataset.test names."""
    name, key = job["spec"]["dataset"]["test"]["uri"].removeprefix("configmap://").split("/")
    found = kubectl.get("configmap", name, job["metadata"]["namespace"])
    if found is None:
        raise DemoFailed(f"the ConfigMap {name} is gone: kubectl apply -f examples/quickstart.yaml")
    return [json.loads(line) for line in found["data"][key].splitlines()]


def base_answers(kubectl: Kubectl, job: Object, image: str) -> list[dict[str, str]]:
    """What the base model answered in the job's evaluation, row by row."""
    namespace = job["metadata"]["namespace"]
    claim, _, path = job["status"]["resolved"]["store"].removeprefix("pvc://").partition("/")
    evaluation = next(s["fingerprint"] for s in job["status"]["steps"] if s["name"] == "evaluate")
    kubectl("delete", "pod", POD, "-n", namespace, "--ignore-not-found", "--wait")
    kubectl.apply(_pod(namespace, image, claim, [f"/store/{path}", evaluation]))
    wait = f"--timeout={POD_SECONDS}s"
    try:
        kubectl("wait", "pod", POD, "-n", namespace, "--for=jsonpath={.status.phase}=Succeeded", wait)
        text = kubectl("logs", POD, "-n", namespace)
    except KubectlFailed as error:
        told = kubectl("describe", "pod", POD, "-n", namespace)
        raise DemoFailed(f"the base model's answers could not be read from the store: {error}\n{told[-2000:]}") from error
    finally:
        kubectl("delete", "pod", POD, "-n", namespace, "--ignore-not-found", "--wait=false")
    return [json.loads(line) for line in text.splitlines()]


def complete(port: int, model: str, question: str, tokens: int) -> str:
    """One answer of the served model, over the OpenAI API. Raises DemoFailed."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": tokens}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback: no proxy can reach it
    for seconds in (1, 2, 0):
        try:
            with direct.open(request, timeout=ANSWER_SECONDS) as response:
                return str(json.load(response)["choices"][0]["message"]["content"]).strip()
        except (OSError, KeyError) as error:
            if not seconds:
                raise DemoFailed(f"the served model does not answer: {error}; kubectl describe modelserve {model}") from error
            time.sleep(seconds)
    raise AssertionError("unreachable")


def _pod(namespace: str, image: str, claim: str, arguments: list[str]) -> Object:
    container: Object = {
        "name": "read",
        "image": image,
        "command": ["python", "-c", READ, *arguments],
        "volumeMounts": [{"name": "store", "mountPath": "/store", "readOnly": True}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "store", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }
