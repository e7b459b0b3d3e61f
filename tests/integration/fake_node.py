"""A node that exists only as a thread: pods that the Job controller made run for a moment and end as the test says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from localcluster.api import Api, ApiError

Pod = dict[str, Any]
Ending = tuple[int, str]  # exit code and termination message

MANAGED = "labelSelector=app.kubernetes.io%2Fmanaged-by%3Dfinetune-operator"


class FakeNode:
    """Ends every pod of one namespace that our operator asked for; `ending` gives None where a pod goes on running."""

    def __init__(self, api: Api, namespace: str, ending: Callable[[Pod], Ending | None]) -> None:
        self._api = api
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._ending = ending
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeNode:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            for pod in self._api.request("GET", f"{self._pods}?{MANAGED}")["items"]:
                if pod["status"]["phase"] in ("Pending", "Running"):
                    self._end(pod)

    def _end(self, pod: Pod) -> None:
        ending = self._ending(pod)
        if ending is None and pod["status"]["phase"] == "Running":
            return
        path = f"{self._pods}/{pod['metadata']['name']}/status"
        status = _running(pod) if ending is None else _ended(pod, *ending)
        try:
            self._api.request("PATCH", path, {"status": status}, "application/merge-patch+json")
        except ApiError as error:
            if error.code != 404:  # deleted in between, as a test may well do
                raise


def _running(pod: Pod) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": pod["metadata"]["creationTimestamp"]}
    state = {"running": {"startedAt": pod["metadata"]["creationTimestamp"]}}
    return {"phase": "Running", "conditions": [ready], "containerStatuses": [_container(pod, state, ready=True)]}


def _ended(pod: Pod, code: int, message: str) -> dict[str, Any]:
    time = pod["metadata"]["creationTimestamp"]
    state = {"terminated": {"exitCode": code, "message": message, "startedAt": time, "finishedAt": time}}
    containers = [_container(pod, state, ready=False)]
    return {"phase": "Failed" if code else "Succeeded", "startTime": time, "containerStatuses": containers}


def _container(pod: Pod, state: dict[str, Any], *, ready: bool) -> dict[str, Any]:
    name = pod["spec"]["containers"][0]["name"]
    return {"name": name, "image": "none", "imageID": "", "ready": ready, "restartCount": 0, "state": state}
