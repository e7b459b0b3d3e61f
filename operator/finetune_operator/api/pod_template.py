"""What both kinds let a user say of their pods: an allow-list of a pod's fields, by the names that Kubernetes gives them.

What is not here is ours: images and commands, security, volumes, and which containers there are.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from finetune_trainer.contract.fields import Strict

NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=NAME)]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$")]
_AS_IN_A_POD: dict[str, JsonValue] = {"x-preserve": True}


class Toleration(Strict):
    key: str | None = Field(None, max_length=316)
    """Key of the taint. Unset, with operator Exists: any."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How the taint's value is compared."""
    value: str | None = Field(None, max_length=63)
    """Value of the taint, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Unset: any."""
    toleration_seconds: int | None = Field(None, ge=0)
    """For NoExecute: how long the pod stays. Unset: for ever."""


class Affinity(Strict):
    node_affinity: dict[str, Any] = Field(default_factory=dict, json_schema_extra=_AS_IN_A_POD)
    """Nodes that are required or preferred, as in a pod's spec."""
    pod_affinity: dict[str, Any] = Field(default_factory=dict, json_schema_extra=_AS_IN_A_POD)
    """Pods to be near to."""
    pod_anti_affinity: dict[str, Any] = Field(default_factory=dict, json_schema_extra=_AS_IN_A_POD)
    """Pods to be away from."""


class TopologySpreadConstraint(Strict):
    topology_key: str = Field(min_length=1, max_length=316)
    """Label of nodes by which they are parted, such as topology.kubernetes.io/zone."""
    max_skew: int = Field(1, ge=1, le=1000)
    """How many more pods one part may have than another."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = "ScheduleAnyway"
    """What becomes of a pod that would break it."""
    min_domains: int | None = Field(None, ge=1, le=1000)
    """Fewest parts that there must be; goes with DoNotSchedule."""
    label_selector: dict[str, Any] = Field(default_factory=dict, json_schema_extra=_AS_IN_A_POD)
    """Pods that are counted. Unset: those of the same job or ModelServe."""


class PullSecret(Strict):
    name: Name
    """Name of a Secret of type kubernetes.io/dockerconfigjson in the same namespace."""


class PodTemplate(Strict):
    labels: dict[str, LabelValue] = Field(default_factory=dict, max_length=32)
    """Labels added to the pods. Keys below finetune.dev/, app.kubernetes.io/, batch.kubernetes.io/ and kueue.x-k8s.io/ are
    taken."""
    annotations: dict[str, str] = Field(default_factory=dict, max_length=32)
    """Annotations added to the pods."""
    node_selector: dict[str, str] = Field(default_factory=dict, max_length=16)
    """Labels that a node must have."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=16)
    """Taints that the pods tolerate."""
    affinity: Affinity = Field(default_factory=cache(Affinity))
    """Nodes and pods to be near to, or away from."""
    topology_spread_constraints: list[TopologySpreadConstraint] = Field(default_factory=list, max_length=8)
    """How the pods are spread over zones or nodes."""
    service_account_name: Name | None = None
    """Service account of the pods. Unset: default. Its token is not mounted."""
    priority_class_name: Name | None = None
    """PriorityClass of the pods. Unset: the cluster's default."""
    scheduler_name: Name | None = None
    """Scheduler of the pods. Unset: the cluster's default."""
    runtime_class_name: Name | None = None
    """RuntimeClass of the pods, such as nvidia. Unset: the node's default."""
    image_pull_secrets: list[PullSecret] = Field(default_factory=list, max_length=8)
    """Credentials of the registries that the images lie in."""
