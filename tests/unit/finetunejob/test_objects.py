"""What the operator creates for a job, where the golden files say nothing of it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.builders import FIT, make_job
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


@pytest.mark.parametrize(("gpus", "limit"), [(0, f"{24 * 1024}Mi"), (1, f"{8 * 1024}Mi"), (2, f"{8 * 1024}Mi")])
def test_a_pod_may_use_twice_what_training_on_cpus_is_estimated_to_need(gpus: int, limit: str) -> None:
    story = Story(make_job(parallelism={"gpusPerNode": gpus}))
    story.passes()
    result = story.result("prepare")
    story.succeed_with(result.model_copy(update={"fit": FIT.model_copy(update={"predicted_bytes": 12 * 2**30})}))
    story.passes()
    (container,) = story.created[-1]["spec"]["template"]["spec"]["containers"]
    assert container["command"][-1] == "train"
    assert container["resources"]["limits"]["memory"] == limit
