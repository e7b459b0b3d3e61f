"""Deadlines end what takes too long, with a sentence, and a job that has ended is removed when its time is over."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.builders import NOW, UID, make_job, make_pod, reported_failure, stamp
from tests.story import Story

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.decision import Delete
from finetune_operator.finetunejob.deadlines import seconds_left
from finetune_operator.finetunejob.observed import World, observe
from finetune_trainer.contract.exits import ExitCode

UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no GPU"}


def pending(**spec: Any) -> Story:
    """A job whose first pod finds no node. A pass takes ten minutes."""
    story = Story(make_job(**spec))
    story.passes(2)
    job = story.space.running()
    story.space.pods[job["metadata"]["name"]] = make_pod(job, phase="Pending", conditions=[UNSCHEDULABLE])
    return story


def test_pods_that_never_start_end_the_job_with_the_schedulers_words() -> None:
    story = pending(pendingDeadlineSeconds=3600)
    story.one_pass()
    assert story.conditions()["Reconciling"] == ("True", "Unschedulable")
    assert "delete Job" in " ".join(story.passes(5))
    assert story.conditions()["Failed"] == ("True", "PendingDeadlineExceeded")
    assert "no GPU" in story.job["status"]["lastFailure"]["message"]
    assert story.passes() == []


def test_a_pod_of_which_nothing_is_said_ends_the_job_with_the_deadline_alone() -> None:
    story = pending(pendingDeadlineSeconds=3600)
    for pod in story.space.pods.values():
        pod["status"]["conditions"] = []
    story.passes(6)
    assert story.job["status"]["lastFailure"]["message"] == "no pod started within spec.pendingDeadlineSeconds, 3600 s"


@pytest.mark.parametrize(("minute", "over"), [(59, False), (60, True)])
def test_a_deadline_has_passed_when_its_last_second_has(minute: int, over: bool) -> None:
    story = pending(pendingDeadlineSeconds=3600)
    story.minute = minute
    assert any(c["type"] == "Failed" for c in story.decide().status["conditions"]) is over


def test_pods_are_waited_for_where_no_deadline_is_set() -> None:
    story = pending()
    story.passes(20)
    assert story.conditions()["Reconciling"] == ("True", "Unschedulable")


def test_a_queue_takes_no_time_of_the_deadline() -> None:
    story = pending(pendingDeadlineSeconds=600)
    job = story.space.running()
    job["spec"]["suspend"] = True
    story.space.pods.clear()
    story.passes(20)
    assert "Failed" not in story.conditions()


def test_a_job_that_takes_too_long_is_stopped_and_goes_on_when_the_deadline_is_raised() -> None:
    story = Story(make_job(activeDeadlineSeconds=3600))
    story.passes(2)
    assert story.decide().requeue_after is not None
    assert "delete Job" in " ".join(story.passes(8))
    assert story.conditions()["Failed"] == ("True", "DeadlineExceeded")
    assert story.job["status"]["lastFailure"]["step"] == "prepare"
    story.edit(activeDeadlineSeconds=10**6)
    assert story.to_the_end()[-1] == "evaluate-q4"
    assert "Succeeded" in story.conditions()


@pytest.mark.parametrize(("seconds", "over"), [(3540, False), (3600, True)])
def test_the_time_of_a_job_is_over_when_its_last_second_is(seconds: int, over: bool) -> None:
    story = Story(make_job(activeDeadlineSeconds=3600))
    story.passes(2)
    since = datetime.fromisoformat(story.job["status"]["activeSince"])
    story.minute = round((since - NOW).total_seconds() + seconds) // 60
    assert any(c["type"] == "Failed" for c in story.decide().status["conditions"]) is over


def test_what_has_started_waits_for_no_deadline() -> None:
    story = Story(make_job(pendingDeadlineSeconds=3600))
    story.passes(2)
    story.minute = 59
    assert story.decide().requeue_after == 30, "its progress is looked at, no deadline a minute away"
    job = FineTuneJob.model_validate(story.job)
    world = observe(story.space.observed(), UID, NOW)
    assert seconds_left(job, job.status, world, NOW) is None


@pytest.mark.parametrize(("seconds", "left"), [(3599, 1), (3600, None)])
def test_the_last_second_before_a_deadline_is_waited_for(seconds: int, left: int | None) -> None:
    job = FineTuneJob.model_validate(make_job(activeDeadlineSeconds=3600))
    since = job.status.model_copy(update={"active_since": stamp()})
    assert seconds_left(job, since, World(), NOW + timedelta(seconds=seconds)) == left


def test_a_job_that_has_ended_has_no_deadline_left() -> None:
    story = Story(make_job(activeDeadlineSeconds=10**6))
    story.to_the_end()
    story.minute += 10**6
    assert (story.passes(), story.conditions()["Succeeded"]) == ([], ("True", "Succeeded"))


def test_what_a_suspended_job_takes_does_not_count() -> None:
    story = Story(make_job(activeDeadlineSeconds=3600))
    story.passes(2)
    story.edit(suspend=True)
    story.passes(20)
    assert story.conditions()["Ready"] == ("False", "Suspended")
    story.space.jobs[story.space.running()["metadata"]["name"]]["spec"]["suspend"] = False
    story.edit(suspend=False)
    story.passes(2)
    assert "Failed" not in story.conditions()


def test_a_job_that_has_ended_is_removed_when_its_time_is_over() -> None:
    story = Story(make_job(ttlSecondsAfterFinished=3600))
    story.to_the_end()
    left = story.decide()
    assert left.actions == ()
    assert left.requeue_after is not None
    assert left.requeue_after < 3600
    ended = next(c["lastTransitionTime"] for c in story.job["status"]["conditions"] if c["type"] == "Succeeded")
    story.minute = round((datetime.fromisoformat(ended) - NOW).total_seconds()) // 60 + 59
    assert story.decide().actions == ()
    story.minute += 1
    assert story.decide().actions == (Delete("FineTuneJob", "facts", story.job["metadata"]["uid"]),)


def test_a_job_that_has_failed_is_removed_when_its_time_is_over_too() -> None:
    story = Story(make_job(ttlSecondsAfterFinished=3600))
    story.passes()
    story.space.end(*reported_failure(ExitCode.BAD_DATA, "UnknownColumns", "no such column"))
    story.passes(3)
    assert story.conditions()["Failed"][0] == "True"
    story.minute += 60
    assert story.decide().actions == (Delete("FineTuneJob", "facts", story.job["metadata"]["uid"]),)


def test_without_a_time_to_live_it_stays() -> None:
    story = Story(make_job())
    story.to_the_end()
    story.minute += 10**6
    assert story.decide().actions == ()
