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
        self.ended: list[str] = []  # names of the pods that it ended

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
        status: dict[str, Any] = {"phase": "Running", "startTime": pod["metadata"]["creationTimestamp"]}
        if ending is not None:
            code, message = ending
            status = {"phase": "Failed" if code else "Succeeded", "startTime": pod["metadata"]["creationTimestamp"]}
            name, times = pod["spec"]["containers"][0]["name"], pod["metadata"]["creationTimestamp"]
            ended = {"exitCode": code, "message": message, "startedAt": times, "finishedAt": times}
            status["containerStatuses"] = [
                {
                    "name": name,
                    "image": "none",
                    "imageID": "",
                    "ready": False,
                    "restartCount": 0,
                    "state": {"terminated": ended},
                }
            ]
        elif pod["status"]["phase"] == "Running":
            return
        path = f"{self._pods}/{pod['metadata']['name']}/status"
        try:
            self._api.request("PATCH", path, {"status": status}, "application/merge-patch+json")
        except ApiError as error:
            if error.code != 404:  # deleted in between, as a test may well do
                raise
        else:
            if ending is not None:
                self.ended.append(pod["metadata"]["name"])
