"""What the operator creates for a FineTuneJob, as manifests: the run's ConfigMap, the claim, one Job for each attempt.

Pods meet Pod Security "restricted". GPUs are held only by steps that need one. The pods get no API token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from finetune_operator import certificates, names, pod_security
from finetune_operator.api.finetunejob import FineTuneJob, Resources, Stage
from finetune_operator.api.finetunejob_status import FineTuneJobStatus
from finetune_operator.finetunejob.image import asks_vllm, default_image
from finetune_operator.finetunejob.placement import placement, queue_labels
from finetune_operator.finetunejob.plan import Start
from finetune_operator.finetunejob.record import step_record
from finetune_operator.finetunejob.runs import Run
from finetune_operator.meta import API_VERSION, Object
from finetune_operator.names import (
    LABEL_ATTEMPT,
    LABEL_MANAGED_BY,
    LABEL_RUN,
    LABEL_STEP,
    STEP_CONTAINER,
    artifacts_claim,
    job_labels,
    step_job,
    volume_name,
)
from finetune_operator.settings import Settings
from finetune_trainer.contract import pod, training
from finetune_trainer.contract.fields import SecretRef
from finetune_trainer.contract.pipeline import PREPARE, TRAIN, Step, claims, config_maps, models
from finetune_trainer.contract.places import CONFIG_MAP, PVC, claim_of, mounted_path

SHORT_GRACE_SECONDS = 30  # of all steps that save no checkpoints
DEFAULT_CPU = "500m"
RANKS_PORT = 29500  # torchrun's own
_GIB = 1024**3
# Memory asked for where the spec asks for none: one GiB, and this many times the base model's size on disk.
MEMORY_FACTOR = {"prepare": 0.0, "train": 4.0, "merge": 3.0, "quantize": 2.0, "evaluate": 2.0, "publish": 0.0}
MEMORY_FACTOR_ON_GPU = 1.0


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


def attempt_job(job: FineTuneJob, run: Run, start: Start, status: FineTuneJobStatus, settings: Settings) -> Object:
    """The Job of one attempt: pods that are never restarted in place, so each attempt has its own exit code and report.

    Where several pods train together, the first that fails ends the Job, and Kubernetes takes the others away.
    """
    step = start.step
    labels = {LABEL_RUN: run.id, LABEL_STEP: step.name, LABEL_ATTEMPT: str(start.attempt)}
    name, queue = step_job(job.metadata.name, step.name, run.id, start.attempt), queue_labels(job, step)
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
                "metadata": {"labels": {**job_labels(job.metadata.name), **labels}},
                "spec": _pod_spec(job, run, start, status, settings),
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


def _pod_spec(job: FineTuneJob, run: Run, start: Start, status: FineTuneJobStatus, settings: Settings) -> Object:
    step = start.step
    stage: Stage = getattr(job.spec.stages, step.stage)
    grace = settings.grace_seconds if step.stage == "train" else SHORT_GRACE_SECONDS
    volumes = _volumes(job, run, step)
    container: Object = {
        "name": STEP_CONTAINER,
        "image": stage.image or default_image(run, step, settings),
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "finetune_trainer", step.name],
        "env": _environment(start.attempt, grace, settings, _master(job, run, start) | _told(job, start.step, status)),
        "resources": _resources(job, run, step, stage.resources, status),
        "securityContext": pod_security.container(),
        "volumeMounts": [v.mount for v in volumes],
    }
    if secrets := _secrets(job, run, step):
        container["envFrom"] = [{"secretRef": {"name": name}} for name in secrets]
    spec: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace,
        "securityContext": pod_security.pod(),
        "containers": [container],
        "volumes": [v.source for v in volumes],
    }
    if run.pods(step) > 1:
        spec["subdomain"] = names.ranks_service(run.id)
    return spec | placement(job, stage)


def _master(job: FineTuneJob, run: Run, start: Start) -> dict[str, str]:
    """Where the ranks of several pods meet; those of one pod need no name for it."""
    if run.pods(start.step) == 1:
        return {}
    first = f"{step_job(job.metadata.name, start.step.name, run.id, start.attempt)}-0"
    return {pod.ENV_MASTER: f"{first}.{names.ranks_service(run.id)}:{RANKS_PORT}"}


def _told(job: FineTuneJob, step: Step, status: FineTuneJobStatus) -> dict[str, str]:
    """Whom to trust; a smaller micro-batch where the GPU's memory did not hold the estimated one; what the job calls a hang."""
    size, medians = step_record(status, step.name).micro_batch_size, job.spec.retry.hang_after_median_steps
    told = certificates.environment(job.spec.storage.artifacts.ca_secret_ref)
    told |= {} if size is None else {pod.ENV_MICRO_BATCH_SIZE: str(size)}
    if step.stage == TRAIN and medians != training.HANG_AFTER_MEDIAN_STEPS:
        told[pod.ENV_HANG_AFTER] = str(medians)
    return told


def _environment(attempt: int, grace: int, settings: Settings, more: dict[str, str]) -> list[Object]:
    values = {
        pod.ENV_RUN_FILE: pod.RUN_FILE,
        pod.ENV_MOUNTS: pod.MOUNTS,
        pod.ENV_SCRATCH: pod.SCRATCH,
        pod.ENV_TERMINATION_LOG: pod.TERMINATION_LOG,
        pod.ENV_ATTEMPT: str(attempt),
        pod.ENV_GRACE_SECONDS: str(grace),
        "HOME": "/tmp",  # the root file system is read-only
        "HF_HOME": f"{pod.SCRATCH}/huggingface",
        "PYTHONUNBUFFERED": "1",  # progress lines are read while the pod runs
        **more,
    }
    if settings.hub_endpoint:
        values["HF_ENDPOINT"] = settings.hub_endpoint
        values["HF_HUB_DISABLE_XET"] = "1"  # mirrors speak plain HTTP
    env: list[Object] = [{"name": name, "value": value} for name, value in values.items()]
    env.append({"name": pod.ENV_POD_UID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}})
    return env


def _resources(job: FineTuneJob, run: Run, step: Step, wanted: Resources, status: FineTuneJobStatus) -> Object:
    gpus = run.gpus(step)
    factor = MEMORY_FACTOR_ON_GPU if gpus else MEMORY_FACTOR[step.stage]
    mebibytes = int((_GIB + factor * (status.model.bytes if status.model else 0)) / 1024**2)
    requests: dict[str, str] = {"cpu": DEFAULT_CPU, "memory": f"{mebibytes}Mi"}
    # A limit alone is also the request, as in any pod: a default above it would be refused.
    requests = {k: v for k, v in requests.items() if k not in wanted.limits} | dict(wanted.requests)
    limits = dict(wanted.limits)
    if gpus:
        limits[job.spec.parallelism.gpu.resource_name] = str(gpus)
    return {k: v for k, v in (("requests", requests), ("limits", limits)) if v}


def _secrets(job: FineTuneJob, run: Run, step: Step) -> list[str]:
    """Secrets whose keys become this step's environment; a later one wins where two have the same key."""
    refs: list[SecretRef | None] = []
    if step.name == PREPARE:
        refs = [*(model.secret_ref for model in models(run.config)), run.config.dataset.secret_ref]
    elif step.stage == "publish":
        refs = [run.config.publish[int(step.name.rpartition("-")[2])].secret_ref]
    elif step.stage == TRAIN:
        refs = [run.config.training.report_secret_ref]
    refs.append(job.spec.storage.artifacts.secret_ref)
    return list(dict.fromkeys(r.name for r in refs if r is not None))


@dataclass(frozen=True)
class _Volume:
    source: dict[str, Any]
    mount: dict[str, Any]


def _volumes(job: FineTuneJob, run: Run, step: Step) -> list[_Volume]:
    size = job.spec.storage.scratch.size
    scratch = {"sizeLimit": size} if size else {}
    folder = pod.RUN_FILE.rpartition("/")[0]
    found = [
        _volume("run", {"configMap": {"name": run.config_map}}, folder, read_only=True),
        _volume("scratch", {"emptyDir": scratch}, pod.SCRATCH),
        _volume("tmp", {"emptyDir": {}}, "/tmp"),
    ]
    if (ca := job.spec.storage.artifacts.ca_secret_ref) is not None:
        found.append(_Volume(certificates.volume(ca), certificates.mount()))
    if step.needs_gpu or asks_vllm(run, step):
        found.append(_volume("shm", {"emptyDir": {"medium": "Memory"}}, "/dev/shm"))
    writable = _written_claims(run, step)
    for claim in _claims(run, step):
        path = mounted_path(f"{PVC.prefix}{claim}", pod.MOUNTS)
        source = {"persistentVolumeClaim": {"claimName": claim}}
        found.append(_volume(volume_name("claim", claim), source, path or "", read_only=claim not in writable))
    for name in config_maps(run.config) if step.name == PREPARE else ():
        path = mounted_path(f"{CONFIG_MAP.prefix}{name}", pod.MOUNTS)
        found.append(_volume(volume_name("data", name), {"configMap": {"name": name}}, path or "", read_only=True))
    return found


def _volume(name: str, source: Object, path: str, *, read_only: bool = False) -> _Volume:
    mount: Object = {"name": name, "mountPath": path}
    return _Volume({"name": name, **source}, mount | ({"readOnly": True} if read_only else {}))


def _claims(run: Run, step: Step) -> list[str]:
    """Claims that a step mounts: rows are read by prepare only, a place to publish to by its own step only."""
    config = run.config
    uris = [config.store.uri, *(model.uri for model in models(config))]
    if step.name == PREPARE:
        return [c for c in claims(config) if c not in _publish_only(run)]
    if step.stage == "publish":
        uris.append(config.publish[int(step.name.rpartition("-")[2])].uri)
    return list(dict.fromkeys(claim for uri in uris if (claim := claim_of(uri))))


def _publish_only(run: Run) -> set[str]:
    without = run.config.model_copy(update={"publish": ()})
    return set(claims(run.config)) - set(claims(without))


def _written_claims(run: Run, step: Step) -> set[str]:
    uris = [run.config.store.uri]
    if step.stage == "publish":
        uris.append(run.config.publish[int(step.name.rpartition("-")[2])].uri)
    return {claim for uri in uris if (claim := claim_of(uri))}
