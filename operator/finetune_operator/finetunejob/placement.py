"""Where and when the pods of a step run: queue, priority, scheduler, nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_operator.api.finetunejob import FineTuneJob, Stage
from finetune_operator.meta import Object
from finetune_operator.names import LABEL_QUEUE, LABEL_QUEUE_PRIORITY, job_labels
from finetune_operator.pod_fields import spec_fields
from finetune_trainer.contract.pipeline import Step

PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def queue_labels(job: FineTuneJob, step: Step) -> dict[str, str]:
    """Labels by which Kueue takes a Job into its queue; none for one that waits in no queue."""
    asked = job.spec.scheduling
    if asked.queue_name is None or (asked.queued_stages == "GPU" and not step.needs_gpu):
        return {}
    priority = asked.workload_priority_class_name
    return {LABEL_QUEUE: asked.queue_name} | ({LABEL_QUEUE_PRIORITY: priority} if priority else {})


def placement(job: FineTuneJob, stage: Stage, avoided: Iterable[str] = ()) -> Object:
    """Fields of the spec of a pod; those that nothing asks for are not there. A stage says more than the job's podTemplate.

    Nodes to avoid are avoided as far as there are others: a cluster that has no other goes on with them.
    """
    asked = job.spec.scheduling
    common = spec_fields(job.spec.pod_template, job_labels(job.metadata.name))
    fields = common | {
        "priorityClassName": asked.priority_class_name or common.get("priorityClassName"),
        "schedulerName": asked.scheduler_name or common.get("schedulerName"),
        "nodeSelector": common.get("nodeSelector", {}) | dict(stage.node_selector),
        "tolerations": [*common.get("tolerations", ()), *stage.tolerations],
        "serviceAccountName": stage.service_account_name or common.get("serviceAccountName"),
        "affinity": _away_from(avoided, common.get("affinity", {})),
    }
    return {name: value for name, value in fields.items() if value}


def _away_from(nodes: Iterable[str], affinity: Object) -> Object:
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    if not fields:
        return affinity
    wish = {"weight": 100, "preference": {"matchFields": fields}}
    of_nodes = affinity.get("nodeAffinity", {})
    return affinity | {"nodeAffinity": of_nodes | {PREFERRED: [*of_nodes.get(PREFERRED, ()), wish]}}
