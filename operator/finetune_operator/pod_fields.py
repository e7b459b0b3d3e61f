"""A podTemplate as fields of a pod: what nothing asks for is not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator.api.pod_template import PodTemplate
from finetune_operator.meta import Object
from finetune_operator.settings import Settings

OF_METADATA = ("labels", "annotations")
# A gate's small pod stands beside no other, so it follows no wish for being near to, or away from, the pods that serve.
OF_SERVING_ALONE = ("affinity", "topologySpreadConstraints")


def spec_fields(template: PodTemplate, selected: Mapping[str, str]) -> Object:
    """Fields of a pod's spec. A spread that says nothing of its pods counts the `selected` ones."""
    fields = {name: value for name, value in _dumped(template).items() if name not in OF_METADATA and value}
    for spread in fields.get("topologySpreadConstraints", ()):
        if not spread.get("labelSelector"):
            spread["labelSelector"] = {"matchLabels": dict(selected)}
    return fields


def pull_secrets(template: PodTemplate, settings: Settings) -> Object:
    """imagePullSecrets of a pod: its object's own, then those that the chart names for all."""
    named = dict.fromkeys([*(secret.name for secret in template.image_pull_secrets), *settings.pull_secrets])
    return {"imagePullSecrets": [{"name": name} for name in named]} if named else {}


def metadata(template: PodTemplate, labels: Mapping[str, str]) -> Object:
    """Labels and annotations of a pod; ours are never replaced."""
    found: Object = {"labels": {**template.labels, **labels}}
    return found | ({"annotations": dict(template.annotations)} if template.annotations else {})


def _dumped(template: PodTemplate) -> dict[str, Any]:
    found = template.model_dump(mode="json", by_alias=True, exclude_none=True)
    found["affinity"] = {name: value for name, value in found["affinity"].items() if value}
    return found
