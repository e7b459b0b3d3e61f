"""What the operator creates for a job, where the golden files say nothing of it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.builders import make_job
from tests.story import SETTINGS, Story

from finetune_operator.meta import Object
from finetune_operator.settings import Settings


def created(kind: str, settings: Settings = SETTINGS, **spec: Any) -> Object:
    story = Story(make_job(**spec), settings=settings)
    story.passes()
    return next(body for body in story.created if body["kind"] == kind)


@pytest.mark.parametrize(
    ("artifacts", "nodes", "expected"),
    [
        ({}, 1, {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}),
        (
            {"size": "5Gi", "storageClassName": "fast"},
            2,
            {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}, "storageClassName": "fast"},
        ),
    ],
)
def test_the_claim_for_artifacts_is_as_the_spec_asks(artifacts: dict[str, Any], nodes: int, expected: Object) -> None:
    claim = created(
        "PersistentVolumeClaim", storage={"artifacts": artifacts}, parallelism={"gpusPerNode": 0, "numNodes": nodes}
    )
    assert claim["spec"] == expected
    assert claim["metadata"]["name"] == "facts-artifacts"
    assert "ownerReferences" not in claim["metadata"], "results outlive the job"


@pytest.mark.parametrize("endpoint", ["", "https://mirror"])
def test_pods_reach_the_hub_by_the_mirror_that_the_chart_names(endpoint: str) -> None:
    job = created("Job", Settings(hub_endpoint=endpoint))
    env = {e["name"]: e.get("value") for e in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    told = {name: env.get(name) for name in ("HF_ENDPOINT", "HF_HUB_DISABLE_XET")}
    assert told == ({"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"} if endpoint else dict.fromkeys(told))
