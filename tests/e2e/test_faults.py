"""Things go wrong, and the job ends as it would have, or says what to change."""

from __future__ import annotations

from typing import Any

import pytest
from demo.follow import is_true
from demo.installation import RELEASE, SYSTEM
from demo.kubectl import KubectlFailed, Object
from tests.e2e import jobs
from tests.e2e.space import JOB, OPERATOR, Space, optimizer_steps, step, steps

pytestmark = pytest.mark.core
FACT = {"prompt": "What is the capital of Velmora?", "completion": "Tarnhaven"}
LONG = {"maxSteps": 60, "checkpoint": {"everySteps": 5}}


def test_operator_killed(space: Space) -> None:
    """SIGKILL at the start of each step: no step runs twice, and the job ends the same."""
    space.apply(jobs.job("survivor", artifacts=[jobs.Q8]))
    killed_at: list[str] = []

    def kill_at_each_step(job: Object) -> bool:
        for name, state in steps(job).items() if job.get("status", {}).get("steps") else ():
            if state == "Running" and name not in killed_at:
                killed_at.append(name)
                space.kubectl("delete", "pod", "-n", SYSTEM, "-l", OPERATOR, "--grace-period=0", "--force", "--wait=false")
        return is_true(job, "Succeeded")

    job = space.until(JOB, "survivor", "succeeds", kill_at_each_step)
    assert len(killed_at) >= 4
    assert set(steps(job).values()) == {"Succeeded"}
    assert set(space.jobs_by_step(job).values()) == {1}
    assert {s["attempt"] for s in job["status"]["steps"]} == {1}
    space.kubectl("rollout", "status", f"deployment/{RELEASE}", "-n", SYSTEM, "--timeout=120s")


def test_trainer_deleted(space: Space) -> None:
    """The pod goes in the middle of training: a new one goes on from the checkpoint, and no retry is spent."""
    training = {**jobs.job("x")["spec"]["training"], **LONG}
    space.apply(jobs.job("resumed", training=training, retry={"maxRetries": 0}))
    space.until(JOB, "resumed", "has trained some steps", lambda job: optimizer_steps(job) >= 8)
    space.kubectl("delete", "pod", "-n", space.name, "-l", "finetune.dev/job=resumed,finetune.dev/step=train", "--wait=false")
    job = space.succeeded("resumed")
    train = step(job, "train")
    assert (train["attempt"], train["retries"]) == (2, 0)
    assert train["resumedFromStep"] >= 5
    assert space.jobs_by_step(job) == {"prepare": 1, "train": 2, "merge": 1, "evaluate": 1}


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown-columns": (
        {"dataset": {"uri": "configmap://columns/rows.jsonl"}},
        "DatasetColumnsUnknown",
        "spec.dataset.columns",
    ),
    "empty": ({"dataset": {"uri": "configmap://empty/rows.jsonl"}}, "DatasetEmpty", "spec.dataset"),
    "too-long": (
        {
            "dataset": {"uri": "configmap://velmora/train.jsonl"},
            "training": {"method": "LoRA", "maxSteps": 2, "maxLength": 8},
        },
        "DatasetRowsTooLong",
        "spec.training.maxLength",
    ),
    "no-model": ({"model": {"uri": "hf://finetune-test/no-such-model"}}, "ModelNotFound", "spec.model"),
    "denied": ({"model": {"uri": f"hf://{jobs.GATED}"}}, "ModelAccessDenied", "spec.model"),
    "no-claim": ({"model": {"uri": "pvc://no-such-claim/model"}}, "ClaimNotFound", "no-such-claim"),
    "no-config-map": ({"dataset": {"uri": "configmap://no-such-map/rows.jsonl"}}, "ConfigMapNotFound", "no-such-map"),
}


def test_bad_input(space: Space) -> None:
    """Each mistake has its reason and a sentence that says what to change; nothing is trained, nothing is retried."""
    strange = {"q": FACT["prompt"], "a": FACT["completion"]}
    space.apply(jobs.rows("columns", strange), jobs.rows("empty"))
    for name, (spec, _, _) in BAD.items():
        space.apply(jobs.job(name, **spec))
    for name, (_, reason, words) in BAD.items():
        stalled = space.stalled(name)
        assert stalled["reason"] == reason, (name, stalled)
        assert words in stalled["message"], (name, stalled)
    for name in BAD:
        job = space.get(JOB, name)
        assert job is not None
        assert set(space.jobs_by_step(job)) <= {"prepare"}, name
        assert all(s["attempt"] <= 1 for s in job["status"]["steps"]), name


@pytest.mark.space("bad-input")
def test_bad_input_that_the_api_server_refuses(space: Space) -> None:
    """A rule that is broken never becomes an object."""
    training = {"epochs": 1, "maxSteps": 5}
    with pytest.raises(KubectlFailed, match=r"spec\.training takes epochs or maxSteps, not both"):
        space.apply(jobs.job("refused", training=training))
    assert space.get(JOB, "refused") is None
