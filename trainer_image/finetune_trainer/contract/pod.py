"""Where a pod finds its run, its mounts and its scratch, and which environment says so: what the operator sets and the
trainer reads.
"""

from __future__ import annotations

from enum import StrEnum

RUN_FILE = "/etc/finetune/run.json"
MOUNTS = "/mnt/finetune"  # claims/<claim>/…, configmaps/<name>/<key> and secrets/<owner>/<key> lie below it
SCRATCH = "/scratch"
TERMINATION_LOG = "/dev/termination-log"
TERMINATION_LIMIT = 4096  # bytes; the kubelet cuts the rest
ENV_RUN_FILE = "FINETUNE_RUN_FILE"
ENV_MOUNTS = "FINETUNE_MOUNTS"
ENV_SCRATCH = "FINETUNE_SCRATCH"
ENV_TERMINATION_LOG = "FINETUNE_TERMINATION_LOG"
ENV_ATTEMPT = "FINETUNE_ATTEMPT"  # counts from 1; with the pod's uid it names what this attempt writes
ENV_POD_UID = "FINETUNE_POD_UID"
ENV_GRACE_SECONDS = "FINETUNE_GRACE_SECONDS"
GRACE_SECONDS = 30.0  # the kubelet's own default
ENV_MICRO_BATCH_SIZE = "FINETUNE_MICRO_BATCH_SIZE"  # set where the memory did not hold what was estimated
ENV_HANG_AFTER = "FINETUNE_HANG_AFTER"  # medians of a step's time; unset: HANG_AFTER_MEDIAN_STEPS
ENV_METRICS_PORT = "FINETUNE_METRICS_PORT"  # where /metrics is served; unset: nowhere
METRICS_PORT = 8080
ENV_IN_USE = "FINETUNE_IN_USE"  # fingerprints in the store's paths that are served or begun from; ALL_IN_USE; unset: unknown
ALL_IN_USE = "*"
ENV_KEPT_LOG = "FINETUNE_KEPT_LOG"  # folder below the store's root for the attempt's log; unset: it is not kept
ENV_JUDGE_KEY = "FINETUNE_JUDGE_KEY"  # of the judge that a gate asks
ENV_API_KEY = "FINETUNE_API_KEY"  # of the served model that a gate asks
ENV_CACHE_URL = "FINETUNE_CACHE_URL"  # of the Redis in which a front keeps answers
ENV_REVISION = "FINETUNE_REVISION"  # of a ModelServe, that the pod is of
ENV_NODE_RANK = "JOB_COMPLETION_INDEX"  # set by Kubernetes in the pods of an Indexed Job
ENV_MASTER = "FINETUNE_MASTER"  # host:port of the pod with index 0, where all ranks meet
ENV_OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT"  # where traces go, by OpenTelemetry's own name; unset: nowhere
ENV_TRACEPARENT = "TRACEPARENT"  # the span that the pod's are below, as W3C's Trace Context writes it
ENV_LLAMA_CPP = "LLAMA_CPP_DIR"
LLAMA_CPP = "/opt/llama.cpp"  # in the trainer's image


class Owner(StrEnum):
    """Whose credentials a Secret holds. Each is a mount of its own, so that two may have keys of the same name."""

    MODEL = "model"
    TEACHER = "teacher"
    DATASET = "dataset"  # rows and task files
    STORE = "store"
    PUBLISH = "publish"  # of the one place that a publish step writes to
    REPORTS = "reports"  # of the trackers, whose libraries read the environment


SOURCES = (Owner.MODEL, Owner.TEACHER, Owner.DATASET)


def secret_folder(mounts: str, owner: Owner) -> str:
    """Where the keys of an owner's Secret lie, a file each."""
    return f"{mounts}/secrets/{owner}"
