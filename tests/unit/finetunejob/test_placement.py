"""Queues of Kueue, priorities, schedulers: what of them is in the Jobs, and who resumes a Job that waits."""

from __future__ import annotations

from typing import Any

from tests.builders import make_job
from tests.story import Story

QUEUE = {"queueName": "gpus", "workloadPriorityClassName": "research"}
ON_GPUS = {"gpusPerNode": 1, "gpu": {"memory": "80Gi"}}


def jobs(story: Story) -> dict[str, dict[str, Any]]:
    created = (body for body in story.created if body["kind"] == "Job")
    return {body["metadata"]["labels"]["finetune.dev/step"]: body for body in created}


def queued() -> Story:
    """A job whose training waits in its queue."""
    story = Story(make_job(parallelism=ON_GPUS, scheduling=QUEUE))
    story.passes(2)
    story.succeed()
    story.passes(2)
    story.space.pods.clear()
    return story


def test_stages_on_gpus_are_created_in_the_queue_and_the_others_start_at_once() -> None:
    created = jobs(queued())
    assert "suspend" not in created["prepare"]["spec"]
    assert created["train"]["spec"]["suspend"] is True
    labels = created["train"]["metadata"]["labels"]
    assert (labels["kueue.x-k8s.io/queue-name"], labels["kueue.x-k8s.io/priority-class"]) == ("gpus", "research")
    everything = Story(make_job(parallelism=ON_GPUS, scheduling=QUEUE | {"queuedStages": "All"}))
    everything.passes(2)
    assert jobs(everything)["prepare"]["spec"]["suspend"] is True


def test_only_the_queue_resumes_what_waits_in_it() -> None:
    story = queued()
    assert story.passes(5) == []
    assert story.conditions()["Reconciling"] == ("True", "Queued")


def test_suspend_takes_a_job_out_of_its_queue_and_going_on_puts_another_one_in() -> None:
    story = queued()
    story.edit(suspend=True)
    (taken,) = story.passes(3)
    assert taken.startswith("delete Job facts-train")
    assert story.conditions()["Ready"] == ("False", "Suspended")
    story.edit(suspend=False)
    assert story.passes(3) == ["job train"]


def test_priority_and_scheduler_are_the_pods() -> None:
    story = Story(make_job(scheduling={"priorityClassName": "low", "schedulerName": "volcano"}))
    story.passes(2)
    pod = jobs(story)["prepare"]["spec"]["template"]["spec"]
    assert (pod["priorityClassName"], pod["schedulerName"]) == ("low", "volcano")
