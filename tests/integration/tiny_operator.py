"""The whole operator as a process, with a policy of the tests' own: one Job for each object, Ready when it has succeeded.

`python tiny_operator.py` reads the same environment as `python -m finetune_operator`.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

from finetune_operator import logs
from finetune_operator.__main__ import run
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.decision import Create, Decision, Event, Observed, Reads
from finetune_operator.meta import Object
from finetune_operator.names import job_labels, serve_labels
from finetune_operator.reconcile import Kind
from finetune_operator.settings import Settings, read_settings


class OneJob:
    """Creates `<name>-1` and waits for it."""

    def reads(self, body: Object) -> Reads:
        name = body["metadata"]["name"]
        labels = job_labels(name) if body["kind"] == "FineTuneJob" else serve_labels(name)
        return Reads(labels, ("Job", "Pod"))

    def decide(self, body: Object, observed: Observed, settings: Settings, now: datetime) -> Decision:
        jobs = [j for j in observed.children["Job"] if j["metadata"]["name"] == f"{body['metadata']['name']}-1"]
        done = bool(jobs and jobs[0].get("status", {}).get("succeeded"))
        status = self._status(body, done, now)
        if body.get("status", {}).get("observedGeneration") == body["metadata"]["generation"] and jobs:
            return Decision((), status, (Event("Succeeded", "The Job succeeded."),) if done else ())
        return Decision(() if jobs else (Create(self._job(body, settings)),), status)

    def _status(self, body: Object, done: bool, now: datetime) -> Object:
        old = {c["type"]: c for c in body.get("status", {}).get("conditions", [])}
        generation = body["metadata"]["generation"]

        def condition(kind: str, value: str) -> Object:
            same = old.get(kind, {}).get("status") == value
            since = old[kind]["lastTransitionTime"] if same else now.strftime("%Y-%m-%dT%H:%M:%SZ")
            reason = "Done" if done else "Running"
            return {
                "type": kind,
                "status": value,
                "reason": reason,
                "message": "",
                "observedGeneration": generation,
                "lastTransitionTime": since,
            }

        conditions = [condition("Ready", "True" if done else "False")]
        return {"observedGeneration": generation, "conditions": conditions}

    def _job(self, body: Object, settings: Settings) -> Object:
        name, kind = body["metadata"]["name"], body["kind"]
        labels = job_labels(name) if kind == "FineTuneJob" else serve_labels(name)
        owner = {"apiVersion": body["apiVersion"], "kind": kind, "name": name, "uid": body["metadata"]["uid"]}
        restricted = {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        container = {"name": "main", "image": settings.trainer_image, "securityContext": restricted}
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": f"{name}-1",
                "namespace": body["metadata"]["namespace"],
                "labels": labels,
                "ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": True}],
            },
            "spec": {
                "backoffLimit": 0,
                "template": {
                    "metadata": {"labels": labels | {"finetune.dev/step": "only"}},
                    "spec": {"restartPolicy": "Never", "containers": [container]},
                },
            },
        }


if __name__ == "__main__":
    settings = read_settings()
    logs.configure(settings.log_level)
    kinds = {"FineTuneJob": Kind(FineTuneJob, OneJob()), "ModelServe": Kind(ModelServe, OneJob())}
    asyncio.run(run(settings, kinds))
