"""Where and when the pods of a step run: queue, priority, scheduler, nodes. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from finetune_operator.api.finetunejob import FineTuneJob, Stage
from finetune_operator.meta import Object
from finetune_operator.names import (
    LABEL_GPU_MAJOR,
    LABEL_GPU_MINOR,
    LABEL_GPU_PRODUCT,
    LABEL_QUEUE,
    LABEL_QUEUE_PRIORITY,
    LONGEST,
    job_labels,
)
from finetune_operator.pod_fields import spec_fields
from finetune_trainer.contract.pipeline import Step

PREFERRED, REQUIRED = (f"{how}DuringSchedulingIgnoredDuringExecution" for how in ("preferred", "required"))
AWAY, ALIKE = 100, 50  # weights: a good node with other GPUs goes before one on which the step failed twice
LONGEST_PRODUCT = LONGEST - len("-SHARED")
# Of compute capabilities from 8.9 on, which have FP8, either is true; so is the first of nodes without these labels.
HAVE_FP8: tuple[list[Object], ...] = (
    [{"key": LABEL_GPU_MAJOR, "operator": "NotIn", "values": [*"35678"]}],
    [
        {"key": LABEL_GPU_MAJOR, "operator": "In", "values": ["8"]},
        {"key": LABEL_GPU_MINOR, "operator": "In", "values": ["9"]},
    ],
)


def queues(job: FineTuneJob, steps: Iterable[Step]) -> dict[str, str]:
    """The LocalQueue in which each step's Job is to wait; without those that wait in none."""
    asked = job.spec.scheduling
    waiting = (step.name for step in steps if step.needs_gpu or asked.queued_stages == "All")
    return {} if asked.queue_name is None else dict.fromkeys(waiting, asked.queue_name)


def queue_labels(job: FineTuneJob, steps: Iterable[Step], step: Step, later: str = "") -> dict[str, str]:
    """Labels by which Kueue takes a Job into its queue; none for one that waits in no queue.

    `later` is the WorkloadPriorityClass of what a job that has begun still has to do: it goes ahead of jobs that have not,
    unless users have put their own into an order.
    """
    queued, asked = queues(job, steps), job.spec.scheduling
    if step.name not in queued:
        return {}
    ordered = asked.priority_class_name or job.spec.pod_template.priority_class_name
    is_later = step.name != next(iter(queued)) and not ordered
    priority = asked.workload_priority_class_name or (later if is_later else "")
    return {LABEL_QUEUE: queued[step.name]} | ({LABEL_QUEUE_PRIORITY: priority} if priority else {})


def placement(
    job: FineTuneJob, stage: Stage, avoided: Iterable[str] = (), gpu: str | None = None, *, in_fp8: bool = False
) -> Object:
    """Fields of the spec of a pod; those that nothing asks for are not there. A stage says more than the job's podTemplate.

    Nodes to avoid are avoided as far as there are others, and those with the GPU that the step ran on before are taken as far
    as there are such: a cluster that has no other goes on with what it has. What multiplies in FP8 takes no GPU that is known
    to have none.
    """
    asked = job.spec.scheduling
    common = spec_fields(job.spec.pod_template, job_labels(job.metadata.name))
    fields = common | {
        "priorityClassName": asked.priority_class_name or common.get("priorityClassName"),
        "schedulerName": asked.scheduler_name or common.get("schedulerName"),
        "nodeSelector": common.get("nodeSelector", {}) | dict(stage.node_selector),
        "tolerations": [*common.get("tolerations", ()), *stage.tolerations],
        "serviceAccountName": stage.service_account_name or common.get("serviceAccountName"),
        "affinity": common.get("affinity", {}),
    }
    alike = [] if LABEL_GPU_PRODUCT in str((fields["nodeSelector"], fields["affinity"])) else _alike(gpu)
    fields["affinity"] = _with_wishes(fields["affinity"], [*_away_from(avoided), *alike])
    if in_fp8:
        fields["affinity"] = _with_fp8(fields["affinity"])
    return {name: value for name, value in fields.items() if value}


def _away_from(nodes: Iterable[str]) -> list[Object]:
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    return [{"weight": AWAY, "preference": {"matchFields": fields}}] if fields else []


def _alike(gpu: str | None) -> list[Object]:
    """Nodes whose GPUs are of this name, as NVIDIA's feature discovery labels them: without blanks, and marked where shared."""
    product = re.sub(r"[^A-Za-z0-9_.-]", "", (gpu or "").replace(" ", "-"))[:LONGEST_PRODUCT].strip("-_.")
    if not product:
        return []
    label = {"key": LABEL_GPU_PRODUCT, "operator": "In", "values": [product, f"{product}-SHARED"]}
    return [{"weight": ALIKE, "preference": {"matchExpressions": [label]}}]


def _with_wishes(affinity: Object, wishes: list[Object]) -> Object:
    if not wishes:
        return affinity
    of_nodes = affinity.get("nodeAffinity", {})
    return affinity | {"nodeAffinity": of_nodes | {PREFERRED: [*of_nodes.get(PREFERRED, ()), *wishes]}}


def _with_fp8(affinity: Object) -> Object:
    """Terms are alternatives, so each of those that are there goes with each of ours."""
    of_nodes = affinity.get("nodeAffinity", {})
    terms = of_nodes.get(REQUIRED, {}).get("nodeSelectorTerms", [{}])
    joined = [t | {"matchExpressions": [*t.get("matchExpressions", ()), *have]} for t in terms for have in HAVE_FP8]
    return affinity | {"nodeAffinity": of_nodes | {REQUIRED: {"nodeSelectorTerms": joined}}}
