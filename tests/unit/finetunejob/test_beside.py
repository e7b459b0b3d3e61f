"""Steps of one job side by side: which, on which stores, and that what counts for one step at work counts for several."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.builders import NOW, make_job, make_pod, reported_failure, stamp
from tests.story import Story

from finetune_operator.api.finetunejob_status import StepStatus
from finetune_operator.claims import CLAIM
from finetune_operator.decision import Create, Ref
from finetune_operator.finetunejob import policy
from finetune_operator.finetunejob.beside import pause_left
from finetune_operator.meta import Object
from finetune_trainer.contract.exits import ExitCode

BUCKET = {"artifacts": {"uri": "s3://bucket/jobs"}}
SHELF = {"artifacts": {"uri": "pvc://shelf/jobs"}}
ARTIFACTS = [
    {"name": "q8", "format": "GGUF", "quantization": "Q8_0"},
    {"name": "q4", "format": "GGUF", "quantization": "Q4_K_M"},
]
ON_GPUS = {"gpusPerNode": 1, "gpu": {"memory": "80Gi"}}
MADE = ["quantize-q8", "quantize-q4", "evaluate"]


def claim(*modes: str) -> Object:
    return {"kind": "PersistentVolumeClaim", "metadata": {"name": "shelf"}, "spec": {"accessModes": list(modes)}}


def merged(modes: tuple[str, ...] = (), **spec: Any) -> Story:
    """A job whose model is merged, and what comes next is on its way."""
    story = Story(make_job(**{"storage": BUCKET, "artifacts": ARTIFACTS, **spec}))
    story.space.named |= {Ref(kind, "shelf"): claim(*modes) for kind in ("PersistentVolumeClaim", CLAIM)}
    story.passes(2)
    for step in ("prepare", "train", "merge"):
        assert list(story.space.at_work()) == [step]
        story.succeed()
        story.passes(5)
    return story


def test_what_waits_for_nothing_of_each_other_runs_at_once() -> None:
    story = merged()
    assert list(story.space.at_work()) == MADE
    assert story.conditions()["Reconciling"] == ("True", "Quantizing")
    story.succeed("quantize-q4")
    assert story.passes(3) == ["job evaluate-q4"], "as soon as there is what it scores"
    for step in ("evaluate", "quantize-q8"):
        story.succeed(step)
        story.passes(3)
    assert list(story.space.at_work()) == ["evaluate-q4", "evaluate-q8"]
    for step in ("evaluate-q8", "evaluate-q4"):
        story.succeed(step)
        story.passes(3)
    assert story.conditions()["Ready"] == ("True", "Succeeded")
    assert all(step["attempt"] == 1 for step in story.job["status"]["steps"])


@pytest.mark.parametrize(
    ("spec", "modes", "at_work"),
    [
        ({"storage": SHELF}, ("ReadWriteOnce",), MADE[:1]),
        ({"storage": SHELF}, ("ReadOnlyMany",), MADE[:1]),
        ({"storage": SHELF}, ("ReadWriteMany",), MADE),
        ({"storage": {}}, (), MADE[:1]),
        ({"model": {"uri": "pvc://shelf/base"}}, ("ReadWriteOnce",), MADE[:1]),
        ({"model": {"uri": "pvc://shelf/base"}}, ("ReadOnlyMany",), MADE),
    ],
)
def test_a_claim_that_one_node_mounts_is_no_place_for_two(
    spec: dict[str, Any], modes: tuple[str, ...], at_work: list[str]
) -> None:
    assert list(merged(modes, **spec).space.at_work()) == at_work


def test_each_is_named_in_the_status_before_it_is_started() -> None:
    story = Story(make_job(storage=BUCKET, artifacts=ARTIFACTS))
    story.passes(2)
    for step in ("prepare", "train", "merge"):
        story.succeed(step)
        story.passes(0 if step == "merge" else 3)
    for number in range(1, 5):
        decision = story.decide()
        made = [a.body["kind"] for a in decision.actions if isinstance(a, Create)]
        assert (made, decision.intent) == ((["Job"], True) if number <= len(MADE) else ([], False))
        if number in (2, 3):
            said = next(c["message"] for c in decision.status["conditions"] if c["type"] == "Ready")
            assert said == f"{MADE[number - 1]} starts beside {', '.join(MADE[: number - 1])}"
        story.one_pass()


def test_a_failure_is_tried_again_beside_what_goes_on() -> None:
    story = merged()
    code, said = reported_failure(ExitCode.UNEXPECTED, "UnexpectedError", "the disk is full")
    story.space.end(code, said, step="quantize-q8")
    assert story.passes(3) == ["job quantize-q8"]
    assert (story.step("quantize-q8")["attempt"], story.step("quantize-q8")["retries"]) == (2, 1)
    assert [story.step(name)["attempt"] for name in MADE[1:]] == [1, 1]


def test_the_pause_between_two_attempts_is_kept_though_another_step_failed_since() -> None:
    story = merged()
    for step in ("quantize-q8", "quantize-q4"):
        story.space.end(*reported_failure(ExitCode.UNEXPECTED, "UnexpectedError", "no"), step=step, seconds=60 * story.minute)
    story.minute -= 10
    assert story.one_pass() == []
    assert {story.step(step)["state"] for step in ("quantize-q8", "quantize-q4")} == {"Pending"}


def test_it_is_over_to_the_second() -> None:
    record = StepStatus(name="evaluate", attempt=2, retries=1, finished_at=stamp())
    assert [pause_left(record, NOW + timedelta(seconds=second)) for second in (0, 19, 20)] == [20, 1, 0]
    story = merged()
    story.space.end(*reported_failure(ExitCode.UNEXPECTED, "UnexpectedError", "no"), step="evaluate", seconds=60 * story.minute)
    story.job = {**story.job, "status": story.decide().status}
    ended = datetime.fromisoformat(story.step("evaluate")["finishedAt"])
    for seconds, starts in ((9, False), (10, True)):
        decision = policy.decide(story.typed, story.seen(), story.settings, ended + timedelta(seconds=seconds))
        assert decision.intent is starts


def test_a_step_that_is_lost_ends_the_others() -> None:
    story = merged()
    code, said = reported_failure(ExitCode.BAD_CONFIG, "ModelNotConvertible", "no")
    story.space.end(code, said, step="quantize-q4")
    stopped = story.passes(3)
    assert sorted(what.split("-")[1] for what in stopped) == ["evaluate", "quantize"]
    assert story.space.at_work() == {}
    assert story.conditions()["Failed"] == ("True", "ModelNotConvertible")
    assert story.job["status"]["lastFailure"]["step"] == "quantize-q4"
    assert {story.step(name)["state"] for name in ("quantize-q8", "evaluate")} == {"Pending"}
    assert "JobDeleted" not in story.events


def test_the_first_that_fails_for_good_tells_why_the_job_did() -> None:
    story = merged()
    story.space.end(*reported_failure(ExitCode.BAD_CONFIG, "ModelNotConvertible", "no"), step="quantize-q8")
    story.space.end(*reported_failure(ExitCode.UNEXPECTED, "UnexpectedError", "no"), step="evaluate")
    story.passes(3)
    assert story.conditions()["Failed"] == ("True", "ModelNotConvertible")


def test_suspend_stops_all_and_going_on_resumes_all() -> None:
    story = merged()
    story.edit(suspend=True)
    assert story.passes(1) == ["SuspendJob"] * 3
    for job in story.space.jobs.values():
        if not job["status"].get("conditions"):
            job["spec"]["suspend"] = True
            job["metadata"]["annotations"] = {"finetune.dev/suspended": "true"}
            story.space.pods.pop(job["metadata"]["name"])
    assert story.passes(2) == []
    assert story.conditions()["Ready"] == ("False", "Suspended")
    story.edit(suspend=False)
    for step in MADE:
        assert story.one_pass() == ["SuspendJob"]
        job = story.space.at_work()[step]
        job["spec"]["suspend"] = False
        story.space.pods[job["metadata"]["name"]] = make_pod(job)
    assert story.passes(2) == []


def test_a_pod_of_which_no_step_knows_goes_first() -> None:
    story = Story(make_job(storage=BUCKET, artifacts=ARTIFACTS))
    story.passes(2)
    for step in ("prepare", "train"):
        story.succeed(step)
        story.passes(3)
    story.succeed("merge")
    story.one_pass()
    stranger = make_pod(
        {"metadata": {"name": "other", "uid": "other", "labels": story.space.at_work()["quantize-q8"]["metadata"]["labels"]}}
    )
    story.space.pods["other"] = stranger
    assert story.passes(3) == []
    del story.space.pods["other"]
    assert story.passes(3) == ["job quantize-q4", "job evaluate"]


def test_a_budget_counts_the_gpus_of_the_step_that_holds_them() -> None:
    story = merged(parallelism=ON_GPUS, budget={"gpuHours": 1000})
    assert list(story.space.at_work()) == MADE
    story.passes(1)
    assert "evaluate" in story.job["status"]["holding"]["job"]
    story.edit(budget={"gpuHours": 0.01})
    story.passes(1)
    assert story.conditions()["Failed"] == ("True", "BudgetExhausted")
    assert story.step("evaluate")["state"] == "Failed"


def test_each_of_several_pods_that_do_not_start_has_its_deadline() -> None:
    story = merged(pendingDeadlineSeconds=3600)
    job = story.space.at_work()["evaluate"]
    story.space.pods[job["metadata"]["name"]] = make_pod(job, phase="Pending")
    story.minute += 120
    story.passes(1)
    assert story.conditions()["Failed"] == ("True", "PendingDeadlineExceeded")
    assert story.step("evaluate")["state"] == "Failed"


def test_the_first_that_says_something_tells_how_far_the_job_is() -> None:
    story = merged()
    story.passes(1)
    assert story.job["status"]["progress"]["step"] == "quantize-q8"
    del story.space.pods[story.space.at_work()["quantize-q8"]["metadata"]["name"]]
    pod = story.space.pods[story.space.at_work()["evaluate"]["metadata"]["name"]]["metadata"]["name"]
    story.space.progress[pod] = {"stepName": "evaluate", "step": 1, "total": 4}
    story.passes(1)
    assert (story.job["status"]["progress"]["step"], story.job["status"]["progress"]["percent"]) == ("evaluate", 25)


def test_what_waits_is_told_before_what_runs() -> None:
    story = merged()
    job = story.space.at_work()["evaluate"]
    waits = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}]
    story.space.pods[job["metadata"]["name"]] = make_pod(job, phase="Pending", conditions=waits)
    story.passes(1)
    assert story.conditions()["Reconciling"] == ("True", "Unschedulable")
    (message,) = {c["message"] for c in story.job["status"]["conditions"] if c["type"] == "Ready"}
    assert story.decide().requeue_after == 30, "what waits and what runs is looked at again"
    assert message == ("quantize-q8 runs, attempt 1; quantize-q4 runs, attempt 1; evaluate waits: 0/3 nodes are available")
