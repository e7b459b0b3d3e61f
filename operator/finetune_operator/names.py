"""Names that we give: labels, annotations, and objects whose names never exceed what Kubernetes takes."""

from __future__ import annotations

import re
from hashlib import sha256

from finetune_operator.meta import GROUP

FIELD_MANAGER = "finetune-operator"
CONTROLLER = f"{GROUP}/operator"  # what spec.managedBy calls us, and who reports our events

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_JOB = f"{GROUP}/job"
LABEL_SERVE = f"{GROUP}/serve"
LABEL_STEP = f"{GROUP}/step"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_RUN = f"{GROUP}/run"
LABEL_REVISION = f"{GROUP}/revision"
LABEL_GATE = f"{GROUP}/gate"  # the revision that a gate's pod asks; never LABEL_REVISION, which Services select by

LABEL_WATCH = f"{GROUP}/watch"  # the revision whose rollback window a Job watches, with the Services that it needs
LABEL_GATEWAY = f"{GROUP}/gateway"  # of all that belongs to the gateway of a ModelServe that sleeps while nobody asks
LABEL_ADAPTER = f"{GROUP}/adapter"  # of the gate's Job of an adapter: its name

LABEL_GPU_PRODUCT = "nvidia.com/gpu.product"  # of nodes, by NVIDIA's feature discovery, as are the next two
LABEL_GPU_MAJOR, LABEL_GPU_MINOR = "nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor"
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"

ANNOTATION_RETRY = f"{GROUP}/retry"  # any new value gives a failed job a fresh budget
ANNOTATION_MODEL_URI = f"{GROUP}/model-uri"
ANNOTATION_MODEL_DIGEST = f"{GROUP}/model-digest"
ANNOTATION_HISTORY = f"{GROUP}/history"  # of the stable Service: which revisions took traffic, as JSON
ANNOTATION_ADAPTERS = f"{GROUP}/adapters"  # of the ConfigMap that pods read: which adapters have passed their gates, as JSON
ANNOTATION_TOLD = f"{GROUP}/adapters-version"  # of pods: of which list of adapters their kubelet was told
ANNOTATION_CACHE = f"{GROUP}/response-cache"  # of pods: which answers they keep, and where
ANNOTATION_PROMOTE = f"{GROUP}/promote"  # names the revision that waits for it
ANNOTATION_SUSPENDED = f"{GROUP}/suspended"  # of a step's Job that spec.suspend suspended: others suspend Jobs, too
ANNOTATION_PIN = f"{GROUP}/pin"  # names the revision that serves, whatever the spec asks for
ANNOTATION_ROLLBACK = f"{GROUP}/rollback"  # names the revision that is left for the one before
ANNOTATION_HOLD = f"{GROUP}/hold"  # "true" freezes the object: nothing is created, changed or deleted

PORT_HTTP = "http"  # where a serving pod takes requests: Services, policies and monitors find it by this name
PORT_GATEWAY = "gateway"  # where a gateway's pod does: another name, as Services may select both kinds of pods
STEP_CONTAINER = "step"  # of an attempt's pod; whatever else is in there was injected

LONGEST = 63  # of a label's value and of a Job's name, which becomes one
LONGEST_INDEX = 3  # "-63": the pods of an Indexed Job have it in their host names


def short_hash(*parts: str, length: int = 8) -> str:
    """Hexadecimal digits over strings."""
    return sha256("\0".join(parts).encode()).hexdigest()[:length]


def object_name(owner: str, *suffix: str, longest: int = LONGEST) -> str:
    """`<owner>-<suffix>…` in at most `longest` characters: a long owner's name is cut and ends in a hash of the whole.

    Dots, which an owner's name may have, become dashes: the result names pods and volumes too.
    """
    tail = "".join(f"-{part}" for part in suffix)
    head = owner.replace(".", "-")
    if head != owner or len(head) + len(tail) > longest:
        mark = short_hash(owner, length=6)
        head = f"{head[: longest - len(tail) - 7].rstrip('-')}-{mark}"
    return head + tail


def label_value(name: str) -> str:
    """A name as a label's value: itself where it fits, otherwise cut with a hash."""
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 7].rstrip('-.')}-{short_hash(name, length=6)}"


def job_labels(job: str) -> dict[str, str]:
    """Labels of every child of a FineTuneJob; also the selector that lists them."""
    return {LABEL_MANAGED_BY: FIELD_MANAGER, LABEL_JOB: label_value(job)}


def serve_labels(serve: str) -> dict[str, str]:
    """Labels of every child of a ModelServe; also the selector that lists them."""
    return {LABEL_MANAGED_BY: FIELD_MANAGER, LABEL_SERVE: label_value(serve)}


def artifacts_claim(job: str) -> str:
    """The claim that is made for a job whose spec names no artifact store."""
    return object_name(job, "artifacts")


def run_config_map(job: str, run_id: str) -> str:
    return object_name(job, "run", run_id)


def run_of(config_map: str) -> str:
    """The id of the run whose configuration has this name."""
    return config_map.rpartition("-")[2]


def step_job(job: str, step: str, run_id: str, attempt: int) -> str:
    """Job of one attempt at one step of one run: a deterministic name, so that creating it twice is harmless."""
    return object_name(job, step, run_id, str(attempt), longest=LONGEST - LONGEST_INDEX)


def ranks_service(run_id: str) -> str:
    """The Service of a run whose training spans several pods. A Service's name begins with a letter; a job's need not."""
    return f"ranks-{run_id}"


def volume_name(kind: str, name: str) -> str:
    """Name of a pod's volume for a claim or a ConfigMap: unique in the pod, and a DNS label."""
    cut = re.sub(r"[^a-z0-9-]", "-", name)[:40].strip("-")
    return f"{kind}-{cut}-{short_hash(name, length=6)}"
