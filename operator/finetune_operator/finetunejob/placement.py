"""Where and when the pods of a step run: queue, priority, scheduler, nodes. Pure."""

from __future__ import annotations

from finetune_operator.api.finetunejob import FineTuneJob, Stage
from finetune_operator.meta import Object
from finetune_operator.names import LABEL_QUEUE, LABEL_QUEUE_PRIORITY
from finetune_trainer.contract.pipeline import Step


def queue_labels(job: FineTuneJob, step: Step) -> dict[str, str]:
    """Labels by which Kueue takes a Job into its queue; none for one that waits in no queue."""
    asked = job.spec.scheduling
    if asked.queue_name is None or (asked.queued_stages == "GPU" and not step.needs_gpu):
        return {}
    priority = asked.workload_priority_class_name
    return {LABEL_QUEUE: asked.queue_name} | ({LABEL_QUEUE_PRIORITY: priority} if priority else {})


def placement(job: FineTuneJob, stage: Stage) -> Object:
    """Fields of the spec of a pod; those that nothing asks for are not there."""
    asked = job.spec.scheduling
    fields = {
        "priorityClassName": asked.priority_class_name,
        "schedulerName": asked.scheduler_name,
        "nodeSelector": dict(stage.node_selector),
        "tolerations": list(stage.tolerations),
        "serviceAccountName": stage.service_account_name,
    }
    return {name: value for name, value in fields.items() if value}
