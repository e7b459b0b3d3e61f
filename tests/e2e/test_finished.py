"""What was done is not done again, and what was made outlives what made it. The scenarios share one small trained job."""

from __future__ import annotations

import pytest
from demo.follow import is_true
from demo.kubectl import Object
from demo.questions import complete
from tests.e2e import jobs
from tests.e2e.space import JOB, SERVE, Space, steps

pytestmark = [pytest.mark.core, pytest.mark.space("e2e-finished")]
NAME, SMALL = jobs.SMALL["metadata"]["name"], jobs.SMALL


@pytest.fixture
def trained(space: Space) -> Object:
    """The job once it has succeeded; it is applied when it is not there."""
    if space.get(JOB, NAME) is None:
        space.apply(SMALL)
    return space.succeeded(NAME)


def test_reuse(space: Space, trained: Object) -> None:
    """Deleted and applied again, only prepare runs."""
    space.delete(JOB, NAME, "--wait")
    space.apply(SMALL)
    again = space.succeeded(NAME)
    assert again["metadata"]["uid"] != trained["metadata"]["uid"]
    assert space.jobs_by_step(again) == {"prepare": 1}
    assert steps(again) == {name: "Succeeded" if name == "prepare" else "Reused" for name in steps(trained)}
    assert again["status"]["artifacts"] == trained["status"]["artifacts"]
    assert again["status"]["scores"] == trained["status"]["scores"]


@pytest.mark.usefixtures("trained")
def test_add_artifact(space: Space) -> None:
    """A GGUF type added to a finished job costs one quantize Job and its evaluation; the Jobs of the run before are gone."""
    space.apply(SMALL | {"spec": SMALL["spec"] | {"artifacts": [jobs.Q8, jobs.Q4]}})
    more = space.succeeded(NAME)
    assert space.jobs_by_step(more) == {"prepare": 1, "quantize-q4": 1, "evaluate-q4": 1}
    assert steps(more)["train"] == "Reused"
    assert {s["subject"] for s in more["status"]["scores"]} == {"base", "merged", "q8", "q4"}


def test_delete_keeps(space: Space, trained: Object) -> None:
    """Deleting the job keeps its artifacts and the served model."""
    serving = trained["status"]["serving"]["name"]
    space.delete(JOB, NAME, "--wait")
    space.kubectl("wait", "--for=delete", "job", "-l", f"finetune.dev/job={NAME}", "-n", space.name, "--timeout=120s")
    claim = space.get("pvc", f"{NAME}-artifacts")
    assert claim is not None
    assert claim["status"]["phase"] == "Bound"
    assert "deletionTimestamp" not in claim["metadata"]
    serve = space.get(SERVE, serving)
    assert serve is not None
    assert is_true(serve, "Ready")
    with space.kubectl.forward(serving, space.name, 8000) as port:
        assert complete(port, serving, "What is the capital of Velmora?", 8)
