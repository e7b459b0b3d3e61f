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
from finetune_operator.meta import API_VERSION, Object, stamp
from finetune_operator.names import job_labels, serve_labels
from finetune_operator.reconcile import Kind
from finetune_operator.settings import Settings, read_settings

Own = FineTuneJob | ModelServe


class OneJob:
    """Creates `<name>-1` and waits for it."""

    def reads(self, own: Own) -> Reads:
        return Reads(_labels(own), ("Job", "Pod"))

    def decide(self, own: Own, observed: Observed, settings: Settings, now: datetime) -> Decision:
        jobs = [j for j in observed.children["Job"] if j["metadata"]["name"] == f"{own.metadata.name}-1"]
        done = any(c["type"] == "Complete" for job in jobs for c in job.get("status", {}).get("conditions", ()))
        status = self._status(own, done, now)
        if own.status.observed_generation == own.metadata.generation and jobs:
            return Decision((), status, (Event("Succeeded", "The Job succeeded."),) if done else ())
        return Decision(() if jobs else (Create(self._job(own, settings)),), status)

    def _status(self, own: Own, done: bool, now: datetime) -> Object:
        old = {c.type: c for c in own.status.conditions}
        generation = own.metadata.generation

        def condition(kind: str, value: str) -> Object:
            same = kind in old and old[kind].status == value
            since = old[kind].last_transition_time if same else stamp(now)
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

    def _job(self, own: Own, settings: Settings) -> Object:
        name, labels = own.metadata.name, _labels(own)
        owner = {"apiVersion": API_VERSION, "kind": type(own).__name__, "name": name, "uid": own.metadata.uid}
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
                "namespace": own.metadata.namespace,
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


def _labels(own: Own) -> dict[str, str]:
    return (job_labels if isinstance(own, FineTuneJob) else serve_labels)(own.metadata.name)


if __name__ == "__main__":
    settings = read_settings()
    logs.configure(settings.log_level)
    kinds = {"FineTuneJob": Kind(FineTuneJob, OneJob()), "ModelServe": Kind(ModelServe, OneJob())}
    asyncio.run(run(settings, kinds))
