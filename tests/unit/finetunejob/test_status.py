"""The status contract, row by row: each situation, and what kstatus (Flux) and `kubectl wait` make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.builders import NOW, SERVING, make_job, make_pod, make_scores, reported_failure
from tests.story import Story

from finetune_operator.api.finetunejob_status import FineTuneJobStatus
from finetune_operator.decision import Ref
from finetune_operator.finetunejob import policy
from finetune_operator.finetunejob.status import rendered
from finetune_operator.meta import Object
from finetune_operator.settings import Settings
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reasons.remarks import RemarkReason
from finetune_trainer.contract.reports import Remark


def kstatus(body: Object) -> str:
    """cli-utils' rules for a custom resource, in their order."""
    status = body.get("status", {})
    if "deletionTimestamp" in body["metadata"]:
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != body["metadata"]["generation"]:
        return "InProgress"
    for condition in status.get("conditions", []):
        if condition["type"] == "Reconciling" and condition["status"] == "True":
            return "InProgress"
        if condition["type"] == "Stalled" and condition["status"] == "True":
            return "Failed"
    ready = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), None)
    return "InProgress" if ready is not None and ready["status"] != "True" else "Current"


def kubectl_wait(body: Object, condition: str) -> bool:
    """Whether `kubectl wait --for=condition=<condition>` returns."""
    for found in body.get("status", {}).get("conditions", []):
        if found["type"].lower() == condition.lower():
            seen = found.get("observedGeneration", body["status"].get("observedGeneration", 0))
            return bool(seen >= body["metadata"]["generation"] and found["status"] == "True")
    return False


def created() -> Story:
    return Story(make_job())


def preparing() -> Story:
    story = created()
    story.passes()
    return story


def unschedulable() -> Story:
    story = preparing()
    job = story.space.running()
    message = "0/3 nodes are available: 3 Insufficient memory."
    no_node = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    story.space.pods[job["metadata"]["name"]] = make_pod(job, phase="Pending", conditions=[no_node])
    story.passes()
    return story


def no_image() -> Story:
    story = preparing()
    job = story.space.running()
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
    pod = make_pod(job, phase="Pending", containerStatuses=[{"name": "step", "state": waiting}])
    story.space.pods[job["metadata"]["name"]] = pod
    story.passes()
    return story


def volume_stuck() -> Story:
    story = preparing()
    job = story.space.running()
    creating = {"waiting": {"reason": "ContainerCreating"}}
    pod = make_pod(job, phase="Pending", containerStatuses=[{"name": "step", "state": creating}])
    story.space.pods[job["metadata"]["name"]] = pod
    story.passes()
    return story


def backing_off() -> Story:
    story = preparing()
    story.space.end(*reported_failure(ExitCode.SOURCE_UNAVAILABLE, "SourceUnavailable", "the hub answered 503"))
    now = NOW + timedelta(seconds=61)
    status = policy.decide(story.typed, story.space.observed(), Settings(), now).status
    story.job = {**story.job, "status": status}
    return story


def claim_missing() -> Story:
    story = Story(make_job(storage={"artifacts": {"uri": "pvc://shelf/x"}}))
    story.space.named[Ref("PersistentVolumeClaim", "shelf")] = None
    story.passes()
    return story


def bad_data() -> Story:
    story = preparing()
    story.space.end(*reported_failure(ExitCode.BAD_DATA, "EmptyDataset", "spec.dataset.uri has no rows; add some"))
    story.passes()
    return story


def suspended() -> Story:
    story = Story(make_job(suspend=True))
    story.passes()
    return story


def done() -> Story:
    story = created()
    story.to_the_end()
    return story


def gate_failed() -> Story:
    story = Story(make_job(), loss=9.0)
    story.to_the_end()
    return story


def rolling_out() -> Story:
    story = Story(make_job(serving=SERVING))
    story.to_the_end()
    return story


def edited() -> Story:
    story = done()
    story.edit(training={"maxSteps": 3})
    return story


def unservable() -> Story:
    story = Story(make_job(artifacts=None, serving=SERVING))
    story.passes()
    return story


ROWS: list[tuple[Callable[[], Story], str, str, str, str]] = [
    # situation, stage, reason of Ready, kstatus, which of Ready and Succeeded and Failed `kubectl wait` would meet
    (preparing, "Preparing", "Preparing", "InProgress", ""),
    (unschedulable, "Preparing", "Unschedulable", "InProgress", ""),
    (no_image, "Preparing", "ImagePullBackOff", "InProgress", ""),
    (volume_stuck, "Preparing", "ContainerCreating", "InProgress", ""),
    (backing_off, "Preparing", "SourceUnavailable", "InProgress", ""),
    (claim_missing, "Waiting", "ClaimNotFound", "Failed", ""),
    (unservable, "Waiting", "InvalidSpec", "Failed", ""),
    (bad_data, "Failed", "EmptyDataset", "Failed", "Failed"),
    (gate_failed, "Failed", "GateFailed", "Failed", "Failed"),
    (suspended, "Suspended", "Suspended", "InProgress", ""),
    (rolling_out, "Serving", "Serving", "InProgress", ""),
    (done, "Succeeded", "Succeeded", "Current", "Ready Succeeded"),
]


@pytest.mark.parametrize(("situation", "stage", "reason", "flux", "met"), ROWS, ids=[r[0].__name__ for r in ROWS])
def test_contract(situation: Callable[[], Story], stage: str, reason: str, flux: str, met: str) -> None:
    job = situation().job
    ready = condition(job, "Ready")
    assert ready is not None
    assert (job["status"]["stage"], ready["reason"], kstatus(job)) == (stage, reason, flux)
    assert [c for c in ("Ready", "Succeeded", "Failed") if kubectl_wait(job, c)] == met.split()
    types = [c["type"] for c in job["status"]["conditions"]]
    assert not {"Reconciling", "Stalled"} <= set(types)
    negative = [c for c in job["status"]["conditions"] if c["type"] not in ("Ready", "Fits") and c["status"] != "True"]
    assert negative == []
    assert job["status"]["observedGeneration"] == job["metadata"]["generation"]
    assert all(c["message"] and c["observedGeneration"] == 1 for c in job["status"]["conditions"])


def condition(job: Object, kind: str) -> dict[str, Any] | None:
    return next((c for c in job["status"]["conditions"] if c["type"] == kind), None)


def test_an_object_that_nobody_has_seen_is_in_progress() -> None:
    job = created().job
    assert kstatus(job) == "InProgress"
    assert not kubectl_wait(job, "Ready")


def test_an_edit_is_in_progress_before_the_operator_has_seen_it() -> None:
    job = edited().job
    assert kstatus(job) == "InProgress"
    assert not kubectl_wait(job, "Succeeded")


def test_a_transition_time_moves_only_when_the_status_flips() -> None:
    story = preparing()
    first = condition(story.job, "Ready")
    story.succeed()
    story.passes()
    later = condition(story.job, "Ready")
    assert first is not None
    assert later is not None
    assert later["reason"] == "Training"
    assert later["lastTransitionTime"] == first["lastTransitionTime"]
    story.to_the_end()
    last = condition(story.job, "Ready")
    assert last is not None
    assert last["lastTransitionTime"] > first["lastTransitionTime"]


def test_messages_name_what_to_change() -> None:
    job = claim_missing().job
    stalled = condition(job, "Stalled")
    assert stalled is not None
    assert stalled["message"].startswith("spec.storage.artifacts.uri names the PersistentVolumeClaim shelf, which does not")
    failed = condition(bad_data().job, "Failed")
    assert failed is not None
    assert "finetune.dev/retry" in failed["message"]


def test_progress_is_what_the_pod_said_last_and_goes_stale() -> None:
    story = preparing()
    story.succeed()
    story.passes()
    pod = story.space.pods[story.space.running()["metadata"]["name"]]["metadata"]["name"]
    said = {"stepName": "train", "activity": "training", "step": 39, "total": 40, "loss": 1.23456, "etaSeconds": 90.4}
    at = NOW + timedelta(minutes=60)
    story.space.progress[pod] = {**said, "tokensPerSecond": 1000.0, "time": at.timestamp()}
    status = decide_at(story, at)["progress"]
    assert (status["percent"], status["loss"], status["etaSeconds"], status["stale"]) == (97, 1.235, 90, False)
    assert decide_at(story, at + timedelta(seconds=120))["progress"]["stale"] is False
    assert decide_at(story, at + timedelta(seconds=121))["progress"]["stale"] is True
    for step, total, percent in ((41, 40, 100), (0, 40, 0), (1, 1, 100), (1, 0, 0)):
        story.space.progress[pod] |= {"step": step, "total": total}
        assert decide_at(story, at)["progress"]["percent"] == percent


def tell_progress(story: Story) -> None:
    """The pod at work says something an hour before the story began, and nothing more."""
    pod = story.space.pods[story.space.running()["metadata"]["name"]]["metadata"]["name"]
    time = (NOW - timedelta(minutes=60)).timestamp()
    step = story.space.running()["metadata"]["labels"]["finetune.dev/step"]
    said = {"stepName": step, "activity": "at it", "step": 1, "total": 2, "etaSeconds": 90.0, "time": time}
    story.space.progress[pod] = said
    story.passes()


def test_what_a_pod_says_no_more_goes_stale_too() -> None:
    story = preparing()
    tell_progress(story)
    story.space.progress.clear()
    story.job["status"]["progress"]["stale"] = False
    story.passes()
    assert (story.job["status"]["progress"]["activity"], story.job["status"]["progress"]["stale"]) == ("at it", True)


def test_how_far_training_has_come_stays_until_the_next_step_says_something() -> None:
    story = preparing()
    story.succeed()
    story.passes()
    tell_progress(story)
    story.succeed()
    story.one_pass()
    progress = story.job["status"]["progress"]
    assert (progress["step"], progress["percent"], progress["loss"]) == ("train", 50, 0.02)


def test_the_status_is_what_the_api_server_gives_back() -> None:
    """Else each pass would find a difference and write it again."""
    for situation in (preparing, gate_failed, done):
        status = situation().decide().status
        assert json.loads(json.dumps(status)) == status
    scored = FineTuneJobStatus(scores=[make_scores("q4", loss=1.0).model_copy(update={"lower_is_better": ("wiki/loss",)})])
    assert rendered(scored)["scores"][0]["lowerIsBetter"] == ["wiki/loss"], "and no tuple"


@pytest.mark.parametrize("suspended", [True, False])
def test_a_success_stays_one_whoever_suspends_the_job_or_forgets_its_spec(suspended: bool) -> None:
    story = done()
    if suspended:
        story.edit(suspend=True)
    else:
        del story.job["status"]["succeededSpec"]  # as a release left it that did not know the field
    assert story.passes() == []
    assert story.conditions()["Succeeded"] == ("True", "Succeeded")


@pytest.mark.parametrize(("nodes", "running", "said"), [(1, None, ""), (2, 1, ", 1 of 2 pods run")])
def test_of_several_pods_it_is_told_how_many_run(nodes: int, running: int | None, said: str) -> None:
    story = Story(make_job(parallelism={"gpusPerNode": 0, "numNodes": nodes}))
    story.passes()
    story.succeed()
    story.passes()
    assert story.step("train").get("runningPods") == running
    ready = condition(story.job, "Ready")
    assert ready is not None
    assert ready["message"] == f"train runs, attempt 1{said}"


def test_a_job_that_has_ended_says_no_more_how_long_it_takes_and_what_it_is_at() -> None:
    story = preparing()
    while "Succeeded" not in story.conditions():
        tell_progress(story)
        assert story.job["status"]["progress"]["etaSeconds"] == 90
        story.succeed()
        story.passes()
    progress = story.job["status"]["progress"]
    assert (progress["percent"], progress["activity"], progress["stale"], "etaSeconds" in progress) == (100, "", False, False)
    story = preparing()
    tell_progress(story)
    story.space.end(*reported_failure(ExitCode.BAD_DATA, "UnknownColumns", "no such column"))
    story.passes()
    progress = story.job["status"]["progress"]
    assert (progress["percent"], "etaSeconds" in progress) == (50, False)


def test_the_loss_stays_when_training_has_ended() -> None:
    assert done().job["status"]["progress"]["loss"] == 0.02


def test_a_job_that_does_not_fit_fails_before_a_gpu_is_taken() -> None:
    story = Story(make_job())
    story.passes()
    fit = story.result("prepare").fit
    assert fit is not None
    too_small = fit.model_copy(update={"available_bytes": fit.predicted_bytes - 1})
    story.succeed_with(story.result("prepare").model_copy(update={"fit": too_small}))
    assert story.passes() == []
    fits, failed = condition(story.job, "Fits"), condition(story.job, "Failed")
    assert fits is not None
    assert failed is not None
    assert (fits["status"], failed["reason"]) == ("False", "DoesNotFit")
    assert story.job["status"]["lastFailure"]["step"] == "prepare"


def test_a_spec_that_may_begin_no_run_keeps_what_was_told_of_the_memory() -> None:
    story = preparing()
    story.succeed()
    story.passes()
    before = condition(story.job, "Fits")
    assert before is not None
    story.edit(profile="none-of-the-charts", training={"seed": 7})
    story.passes()
    assert story.conditions()["Stalled"][0] == "True"
    assert condition(story.job, "Fits") == before | {"observedGeneration": 2}


def test_what_prepare_found_not_to_fit_is_told_without_an_estimate() -> None:
    story = Story(make_job())
    story.passes()
    story.space.end(*reported_failure(ExitCode.DOES_NOT_FIT, "DoesNotFit", "choose a smaller model"))
    story.passes()
    fits = condition(story.job, "Fits")
    assert fits is not None
    assert (fits["status"], fits["reason"]) == ("False", "DoesNotFit")
    assert "choose a smaller model" in fits["message"]


def test_what_training_came_to_stands_beside_the_estimate() -> None:
    story = preparing()
    story.succeed()
    story.passes()
    pod = story.space.pods[story.space.running()["metadata"]["name"]]["metadata"]["name"]
    at = NOW + timedelta(minutes=60)
    for used in (3 * 2**30, 2 * 2**30):  # the most counts
        story.space.progress[pod] = {"kind": "progress", "stepName": "train", "memoryBytes": used, "time": at.timestamp()}
        story.passes()
    fit, fits = story.job["status"]["fit"], condition(story.job, "Fits")
    assert (fit["predictedBytes"], fit["measuredBytes"]) == (2 * 2**30, 3 * 2**30)
    assert fits is not None
    assert "2.0 GiB with micro batches of 8 (it came to 3.0 GiB)" in fits["message"]


def test_gpu_seconds_count_attempts_that_held_a_gpu() -> None:
    story = Story(make_job(parallelism={"gpusPerNode": 1}, artifacts=None))
    story.to_the_end()
    assert story.job["status"]["gpuSeconds"] == 2 * 60  # train and evaluate, a minute each


def test_what_is_hardly_meant_is_in_the_status_and_posted_once() -> None:
    story = Story(make_job(training={"method": "Full", "lora": {"rank": 8}}))
    story.passes()
    assert [w["message"][:43] for w in story.job["status"]["warnings"]] == ["spec.training.lora.rank does nothing: metho"]
    few = Remark(reason=RemarkReason.BatchAboveRows, message="few rows")
    story.succeed_with(story.result("prepare").model_copy(update={"warnings": (few,)}))
    story.passes()
    assert [w["reason"] for w in story.job["status"]["warnings"]] == ["FieldUnused", "BatchAboveRows"]
    assert [story.events.count(reason) for reason in ("FieldUnused", "BatchAboveRows")] == [1, 1]
    story.edit(training={"method": "Full"})
    story.passes()
    assert story.job["status"]["warnings"] == []


def told_by(story: Story) -> list[tuple[str, bool]]:
    """The events of the next pass: what they say before the attempt, and whether they warn."""
    return [(e.message.partition(", attempt")[0], e.warning) for e in story.decide().events]


def test_an_event_tells_what_started_as_what_had_succeeded_and_how_it_ended() -> None:
    story = created()
    assert told_by(story) == [("prepare started", False)]
    story.passes()
    story.succeed()
    assert told_by(story) == [("train started as prepare has succeeded", False)]
    story.passes()
    while len(story.space.at_work()) == 1 and "evaluate-q4" not in story.space.at_work():
        story.succeed()
        assert [warning for _, warning in told_by(story)] == [False]
        story.passes()
    story.succeed()
    assert told_by(story) == [("1 of 1 gates passed", False)]
    assert story.decide().status["stage"] == "Succeeded"
    story = Story(make_job(model={"uri": "pvc://models/llama"}))
    story.space.named[Ref("PersistentVolumeClaim", "models")] = None
    story.one_pass()
    story.minute += 1  # until now it might have come
    (stalled,) = story.decide().events
    assert (stalled.reason, stalled.warning) == ("ClaimNotFound", True)


def test_an_event_tells_what_succeeded_where_nothing_else_starts() -> None:
    story = preparing()
    story.succeed()
    story.edit(suspend=True)
    assert told_by(story) == [("prepare succeeded", False)]


def test_a_warning_is_posted_as_one() -> None:
    first = Story(make_job(merge={"base": "Original"}, training={"method": "LoRA"})).decide()
    assert [(e.reason, e.warning) for e in first.events][:1] == [("FieldUnused", True)]


def decide_at(story: Story, now: Any) -> dict[str, Any]:
    return policy.decide(story.typed, story.space.observed(), Settings(), now).status


def test_a_failure_is_a_warning_among_the_events() -> None:
    story = preparing()
    story.space.end(*reported_failure(ExitCode.BAD_DATA, "EmptyDataset", "there are no rows"))
    assert [(e.reason, e.warning) for e in story.decide().events if e.reason == "EmptyDataset"] == [("EmptyDataset", True)]
