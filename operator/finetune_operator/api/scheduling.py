"""How a job's pods come to their nodes: queue, priorities, scheduler."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_trainer.contract.fields import Strict

_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"


class Scheduling(Strict):
    queue_name: str | None = Field(None, min_length=1, max_length=63, pattern=_NAME)
    """LocalQueue of Kueue that admits the job's stages: their Jobs are created suspended, and start when it admits them.
    Unset: they start at once."""
    queued_stages: Literal["GPU", "All"] = "GPU"
    """Which stages wait in that queue. GPU: those that hold GPUs; All: those on CPUs as well."""
    workload_priority_class_name: str | None = Field(None, min_length=1, max_length=63, pattern=_NAME)
    """Kueue's WorkloadPriorityClass of those stages: their order in the queue. Unset: the queue's own."""
    priority_class_name: str | None = Field(None, min_length=1, max_length=253, pattern=_NAME)
    """PriorityClass of the job's pods. Unset: the cluster's default."""
    scheduler_name: str | None = Field(None, min_length=1, max_length=253, pattern=_NAME)
    """Scheduler of the job's pods. Unset: the cluster's default."""
