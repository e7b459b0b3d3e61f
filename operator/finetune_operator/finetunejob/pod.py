"""The pod of a step: its container, what that is told, and what it asks for.

Pods meet Pod Security "restricted". GPUs are held only by steps that need one. The pods get no API token.
"""

from __future__ import annotations

from collections.abc import Mapping

from finetune_operator import certificates, credentials, names, pod_security
from finetune_operator.api.finetunejob import FineTuneJob, Resources, Stage
from finetune_operator.api.finetunejob_status import FineTuneJobStatus
from finetune_operator.finetunejob.case import Start
from finetune_operator.finetunejob.image import default_image
from finetune_operator.finetunejob.placement import placement
from finetune_operator.finetunejob.record import step_record
from finetune_operator.finetunejob.retries import avoided
from finetune_operator.finetunejob.runs import Run
from finetune_operator.finetunejob.volumes import secrets, volumes
from finetune_operator.meta import Object, quantity_value
from finetune_operator.names import STEP_CONTAINER, step_job
from finetune_operator.pod_fields import pull_secrets
from finetune_operator.settings import Settings
from finetune_trainer.contract import kept_log, pod, training
from finetune_trainer.contract.pipeline import TRAIN, Step
from finetune_trainer.contract.traces import place_of

SHORT_GRACE_SECONDS = 30  # of all steps that save no checkpoints
DEFAULT_CPU = "500m"
RANKS_PORT = 29500  # torchrun's own
METRICS_PORT_NAME = "metrics"  # the chart's PodMonitor asks for it
_GIB = 1024**3
# Memory asked for where the spec asks for none: one GiB, and this many times the base model's size on disk.
MEMORY_FACTOR = {"prepare": 0.0, "train": 4.0, "merge": 3.0, "quantize": 2.0, "evaluate": 2.0, "publish": 0.0, "clean": 0.0}
MEMORY_FACTOR_ON_GPU = 1.0
MEMORY_LIMIT_FACTOR, LEAST_MEMORY_LIMIT = 4, 8 * _GIB


def pod_spec(
    job: FineTuneJob, run: Run, start: Start, status: FineTuneJobStatus, settings: Settings, told: Mapping[str, str]
) -> Object:
    step, told = start.step, {**_of_attempt(job, run, start, settings), **_told(job, start.step, status), **told}
    stage: Stage = getattr(job.spec.stages, step.stage)
    grace = settings.grace_seconds if step.stage == "train" else SHORT_GRACE_SECONDS
    mounted, secret = volumes(job, run, step), secrets(job, run, step)
    container: Object = {
        "name": STEP_CONTAINER,
        "image": stage.image or default_image(run, step, settings),
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "finetune_trainer", step.name],
        "env": _environment(start.attempt, grace, settings, told),
        "ports": [{"name": METRICS_PORT_NAME, "containerPort": pod.METRICS_PORT}],
        "resources": _resources(job, run, step, stage.resources, status),
        "securityContext": pod_security.container(),
        "volumeMounts": [*(v.mount for v in mounted), *credentials.mounts(secret)],
    }
    spec: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace,
        "securityContext": pod_security.pod(),
        "containers": [container],
        "volumes": [*(v.source for v in mounted), *credentials.volumes(secret)],
    }
    if run.pods(step) > 1:
        spec["subdomain"] = names.ranks_service(run.id)
    record = step_record(status, step.name)
    trains = step.stage == TRAIN
    in_fp8 = trains and job.spec.training.in_fp8
    placed = placement(job, stage, avoided(record), record.gpu if trains else None, in_fp8=in_fp8)
    return spec | placed | pull_secrets(job.spec.pod_template, settings)


def _of_attempt(job: FineTuneJob, run: Run, start: Start, settings: Settings) -> dict[str, str]:
    """Where its log is kept, where its traces go and of which span they are part, and where the ranks of several pods meet;
    those of one pod need no name for it.
    """
    meta, name = job.metadata, start.step.name
    job_name = step_job(meta.name, name, run.id, start.attempt)
    told = {pod.ENV_KEPT_LOG: kept_log.folder(meta.namespace, meta.name, run.id, name, start.attempt)}
    if settings.otlp_endpoint:
        told |= {pod.ENV_OTLP: settings.otlp_endpoint, pod.ENV_TRACEPARENT: place_of(meta.uid, job_name).traceparent}
    if run.pods(start.step) > 1:
        told[pod.ENV_MASTER] = f"{job_name}-0.{names.ranks_service(run.id)}:{RANKS_PORT}"
    return told


def _told(job: FineTuneJob, step: Step, status: FineTuneJobStatus) -> dict[str, str]:
    """Whom to trust; a smaller micro-batch where the GPU's memory did not hold the estimated one; what the job calls a hang."""
    size, medians = step_record(status, step.name).micro_batch_size, job.spec.retry.hang_after_median_steps
    told = certificates.environment(job.spec.storage.artifacts.ca_secret_ref)
    told |= {} if size is None else {pod.ENV_MICRO_BATCH_SIZE: str(size)}
    if step.stage == TRAIN and medians != training.HANG_AFTER_MEDIAN_STEPS:
        told[pod.ENV_HANG_AFTER] = str(medians)
    return told


def _environment(attempt: int, grace: int, settings: Settings, more: Mapping[str, str]) -> list[Object]:
    values = {
        pod.ENV_RUN_FILE: pod.RUN_FILE,
        pod.ENV_MOUNTS: pod.MOUNTS,
        pod.ENV_SCRATCH: pod.SCRATCH,
        pod.ENV_TERMINATION_LOG: pod.TERMINATION_LOG,
        pod.ENV_ATTEMPT: str(attempt),
        pod.ENV_GRACE_SECONDS: str(grace),
        pod.ENV_METRICS_PORT: str(pod.METRICS_PORT),
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
    limits = {"memory": _memory_limit(requests, status, on_gpus=gpus > 0)} | dict(wanted.limits)
    if gpus:
        limits[job.spec.parallelism.gpu.resource_name] = str(gpus)
    return {k: v for k, v in (("requests", requests), ("limits", limits)) if v}


def _memory_limit(requests: Mapping[str, str | int | float], status: FineTuneJobStatus, *, on_gpus: bool) -> str:
    """What a pod may use where the spec doesn't say: so much more than is asked for that only a fault reaches it, and then it
    is our pod that ends, and not its neighbours.
    """
    asked = quantity_value(str(requests["memory"])) if "memory" in requests else 0
    trained = 0 if on_gpus or status.fit is None else status.fit.predicted_bytes
    return f"{int(max(MEMORY_LIMIT_FACTOR * asked, 2 * trained, LEAST_MEMORY_LIMIT) / 1024**2)}Mi"
