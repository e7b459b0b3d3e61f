"""What the operator creates for a FineTuneJob, as manifests: the run's ConfigMap, the claim, one Job for each attempt."""

from __future__ import annotations

import json
from collections.abc import Mapping

from finetune_operator import names, pod_fields
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import FineTuneJobStatus
from finetune_operator.finetunejob.case import Start
from finetune_operator.finetunejob.placement import queue_labels
from finetune_operator.finetunejob.pod import RANKS_PORT, pod_spec
from finetune_operator.finetunejob.runs import Run
from finetune_operator.meta import API_VERSION, Object
from finetune_operator.names import (
    LABEL_ATTEMPT,
    LABEL_MANAGED_BY,
    LABEL_RUN,
    LABEL_STEP,
    artifacts_claim,
    job_labels,
    step_job,
)
from finetune_operator.settings import Settings
from finetune_trainer.contract.pipeline import TRAIN


def run_config_map(job: FineTuneJob, run: Run) -> Object:
    """The run's configuration, frozen: a later edit can't reach a pod that runs."""
    config = run.config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _owned(job, run.config_map, {LABEL_RUN: run.id}),
        "immutable": True,
        "data": {"run.json": json.dumps(config, indent=1, ensure_ascii=False)},
    }


def artifacts_volume_claim(job: FineTuneJob) -> Object:
    """The claim made where the spec names no store. It has no owner: results outlive the job."""
    store = job.spec.storage.artifacts
    mode = "ReadWriteMany" if job.spec.parallelism.num_nodes > 1 else "ReadWriteOnce"
    spec: Object = {"accessModes": [mode], "resources": {"requests": {"storage": store.size}}}
    if store.storage_class_name is not None:
        spec["storageClassName"] = store.storage_class_name
    labels = {LABEL_MANAGED_BY: job_labels(job.metadata.name)[LABEL_MANAGED_BY]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": artifacts_claim(job.metadata.name),
            "namespace": job.metadata.namespace,
            "labels": labels,
        },
        "spec": spec,
    }


def attempt_job(
    job: FineTuneJob, run: Run, start: Start, status: FineTuneJobStatus, settings: Settings, told: Mapping[str, str]
) -> Object:
    """The Job of one attempt: pods that are never restarted in place, so each attempt has its own exit code and report.
    `told` are variables that they get besides.

    Where several pods train together, the first that fails ends the Job, and Kubernetes takes the others away.
    """
    step = start.step
    labels = {LABEL_RUN: run.id, LABEL_STEP: step.name, LABEL_ATTEMPT: str(start.attempt)}
    name = step_job(job.metadata.name, step.name, run.id, start.attempt)
    queue = queue_labels(job, run.steps, step, settings.later_stages_priority_class)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _owned(job, name, labels | queue),
        "spec": {
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            **({"suspend": True} if queue else {}),
            **(_indexed(run.pods(step)) if run.pods(step) > 1 else {}),
            "template": {
                "metadata": pod_fields.metadata(job.spec.pod_template, job_labels(job.metadata.name) | labels),
                "spec": pod_spec(job, run, start, status, settings, told),
            },
        },
    }


def _indexed(pods: int) -> Object:
    return {"completionMode": "Indexed", "completions": pods, "parallelism": pods}


def ranks_service(job: FineTuneJob, run: Run) -> Object:
    """Gives the run's train pods names in DNS, from the moment that they have an address: by them the ranks meet."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _owned(job, names.ranks_service(run.id), {LABEL_RUN: run.id}),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {**job_labels(job.metadata.name), LABEL_RUN: run.id, LABEL_STEP: TRAIN},
            "ports": [{"name": "ranks", "port": RANKS_PORT}],
        },
    }


def _owned(job: FineTuneJob, name: str, labels: dict[str, str]) -> Object:
    owner = {
        "apiVersion": API_VERSION,
        "kind": "FineTuneJob",
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": {**job_labels(job.metadata.name), **labels},
        "ownerReferences": [owner],
    }
