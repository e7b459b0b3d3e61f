"""ModelServes of the small trained job, and traffic to them that never stops."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo.follow import condition, is_true
from demo.kubectl import Object
from tests.e2e import jobs
from tests.e2e.space import SERVE, Space
from tests.e2e.traffic import STOP
from tests.waiting import takes_connections, wait_until

from finetune_operator import pod_security

SHARED = "e2e-finished"  # the space of the small job
TESTS = Path(__file__).parents[1]
PROGRAM = {"traffic.py": TESTS / "e2e/traffic.py", "tests/waiting.py": TESTS / "waiting.py"}  # by the path in the pod
PROGRAMS = "/programs"
LONGEST_GAP = 15.0  # seconds without an answer to anybody; two busy cores load a model beside
MODEL = {"jobRef": {"name": jobs.SMALL["metadata"]["name"], "artifact": "q8"}}
WINDOW = {"rollbackWindowSeconds": 20}


def serve(name: str, **spec: Any) -> Object:
    """A ModelServe of the small job's GGUF file. Keywords take the place of parts of its spec."""
    fields = {**jobs.served()["template"], "model": MODEL, "rollout": WINDOW}
    fields |= {"drain": {"seconds": 10}}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "ModelServe", "metadata": {"name": name}, "spec": fields | spec}


def context(tokens: int, **engine: Any) -> dict[str, Any]:
    """Another context is another revision of the same model."""
    return {"type": "LlamaCpp", "maxModelLength": tokens, **engine}


@contextmanager
def live(space: Space, name: str, **spec: Any) -> Iterator[str]:
    """A ModelServe whose first revision serves; it is taken away at the end. One that is refused fails the test at once."""
    space.apply(serve(name, **spec))
    try:
        found = space.until(SERVE, name, "is Ready", lambda s: is_true(s, "Ready") or is_true(s, "Stalled"))
        assert is_true(found, "Ready"), condition(found, "Stalled")
        yield str(found["status"]["live"]["name"])
    finally:
        space.delete(SERVE, name, "--wait=false", "--ignore-not-found")


def address(space: Space, name: str) -> str:
    """URL of a Service, once it leads on from the node: that hears of a pod a moment after the status does."""
    service = space.get("service", name)
    assert service is not None
    found = f"{service['spec']['clusterIP']}:8000"
    wait_until("the node's rules lead to it", lambda: takes_connections(found))
    return f"http://{found}"


def reached(url: str) -> str:
    """What the engine of a fresh connection to a Service tells of its model."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as found:
        return str(json.load(found)["data"][0].get("meta"))


@contextmanager
def traffic(space: Space, name: str, model: str | None = None) -> Iterator[dict[str, Any]]:
    """Ask a ModelServe, or an adapter of it, without a pause. The report is there once the block has ended."""
    pod, report = f"{model or name}-traffic", dict[str, Any]()
    space.delete("pod", pod, "--ignore-not-found", "--wait")
    space.apply(*program_pod(space, pod, PROGRAM, ["traffic.py", f"http://{name}:8000/v1", model or name]))
    space.kubectl("wait", "pod", pod, "-n", space.name, "--for=condition=Ready", "--timeout=120s")
    wait_until("it is answered", lambda: "begun" in space.kubectl("logs", pod, "-n", space.name), 60)
    try:
        yield report
        space.kubectl("exec", pod, "-n", space.name, "--", "touch", STOP)
        space.kubectl("wait", "pod", pod, "-n", space.name, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
        report |= json.loads(space.kubectl("logs", pod, "-n", space.name).splitlines()[-1])
        print(json.dumps(report, indent=1))
    finally:
        space.delete("pod", pod, "--wait=false")


def program_pod(space: Space, name: str, files: dict[str, Path], command: list[str]) -> Iterator[Object]:
    """A pod of the operator's image that runs a program of the tests, behind the ConfigMap with its files, by path."""
    texts = {path.replace("/", "."): file.read_text() for path, file in files.items()}
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": texts}
    container: Object = {
        "name": "program",
        "image": space.operator_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", *command],
        "workingDir": PROGRAMS,
        "env": [{"name": "PYTHONPATH", "value": PROGRAMS}],
        "volumeMounts": [{"name": "program", "mountPath": PROGRAMS}, {"name": "tmp", "mountPath": "/tmp"}],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "securityContext": pod_security.container(),
    }
    items = [{"key": path.replace("/", "."), "path": path} for path in files]
    volumes: list[Object] = [{"name": "program", "configMap": {"name": name, "items": items}}, {"name": "tmp", "emptyDir": {}}]
    spec: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "securityContext": pod_security.pod(),
        "containers": [container],
        "volumes": volumes,
    }
    yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def nothing_lost(report: dict[str, Any], revisions: int) -> None:
    """Everybody was answered, by so many revisions."""
    assert report["failures"] == []
    assert report["longestGap"] <= LONGEST_GAP
    assert sorted(report["callers"]) == ["fresh plain", "fresh stream", "kept plain", "kept stream"]
    assert len(report["revisions"]) == revisions


def refused(space: Space, name: str, reason: str) -> Object:
    """The ModelServe once it has refused its candidate."""
    found = space.until(SERVE, name, f"is Stalled, {reason}", lambda s: (condition(s, "Stalled") or {}).get("reason") == reason)
    assert is_true(found, "Available")
    return found


def serves_another(first: str) -> Callable[[Object], bool]:
    return lambda found: found["status"].get("live", {}).get("name") not in (first, None)
