"""Queues of Kueue, priorities, schedulers: what of them is in the Jobs, and who resumes a Job that waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.builders import make_job
from tests.story import SETTINGS, Story

from finetune_operator.decision import Ref
from finetune_operator.kueue import NOT_SERVED
from finetune_operator.meta import Object

LOCAL_QUEUE = {"kind": "LocalQueue", "metadata": {"name": "gpus"}}
QUEUE = {"queueName": "gpus", "workloadPriorityClassName": "research"}
ON_GPUS = {"gpusPerNode": 1, "gpu": {"memory": "80Gi"}}


def jobs(story: Story) -> dict[str, dict[str, Any]]:
    created = (body for body in story.created if body["kind"] == "Job")
    return {body["metadata"]["labels"]["finetune.dev/step"]: body for body in created}


def queued(*, there: Object | None = LOCAL_QUEUE) -> Story:
    """A job whose training waits in its queue; `there` is what a read of that queue comes to."""
    story = Story(make_job(parallelism=ON_GPUS, scheduling=QUEUE))
    story.space.named[Ref("LocalQueue", "gpus")] = there
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


@pytest.mark.parametrize(
    ("spec", "priorities"),
    [
        ({"scheduling": {"queueName": "gpus"}}, {"train": None, "evaluate": "later"}),
        ({"scheduling": {"queueName": "gpus", "queuedStages": "All"}}, {"prepare": None, "train": "later", "merge": "later"}),
        ({"scheduling": QUEUE}, {"train": "research", "evaluate": "research"}),
        ({"scheduling": {"queueName": "gpus", "priorityClassName": "low"}}, {"train": None, "evaluate": None}),
        (
            {"scheduling": {"queueName": "gpus"}, "podTemplate": {"priorityClassName": "low"}},
            {"train": None, "evaluate": None},
        ),
        ({}, {"train": None, "evaluate": None}),
    ],
)
def test_what_a_job_that_has_begun_still_has_to_do_goes_ahead_of_new_jobs(
    spec: dict[str, Any], priorities: dict[str, str | None]
) -> None:
    settings = replace(SETTINGS, later_stages_priority_class="later")
    story = Story(make_job(parallelism=ON_GPUS, **spec), settings=settings)
    story.to_the_end()
    labels = {step: body["metadata"]["labels"] for step, body in jobs(story).items()}
    assert {step: labels[step].get("kueue.x-k8s.io/priority-class") for step in priorities} == priorities


def test_only_the_queue_resumes_what_waits_in_it() -> None:
    story = queued()
    assert story.passes(5) == []
    assert story.conditions()["Reconciling"] == ("True", "Queued")


@pytest.mark.parametrize(
    ("there", "reason", "words"),
    [
        (None, "QueueNotFound", "spec.scheduling.queueName names the LocalQueue gpus, which does not exist"),
        (NOT_SERVED, "KueueNotFound", "this cluster has no Kueue; install it"),
    ],
)
def test_a_queue_that_is_not_there_is_told_and_waited_for(there: Object | None, reason: str, words: str) -> None:
    story = queued(there=there)
    assert story.conditions()["Reconciling"] == ("True", reason)
    assert words in next(c["message"] for c in story.job["status"]["conditions"] if c["type"] == "Ready")
    assert (story.decide().requeue_after or 0) <= 300, "a queue that is made sends no event that we watch"
    assert story.step("train")["retries"] == 0
    story.space.named[Ref("LocalQueue", "gpus")] = LOCAL_QUEUE
    assert story.passes(2) == []
    assert story.conditions()["Reconciling"] == ("True", "Queued")


@pytest.mark.parametrize("asked", [{"queueName": "others"}, {}])
def test_an_edit_takes_what_waits_out_of_a_queue_that_is_not_there(asked: dict[str, str]) -> None:
    story = queued(there=None)
    story.space.named[Ref("LocalQueue", "others")] = LOCAL_QUEUE
    story.edit(scheduling=asked)
    (taken, started) = story.passes(2)
    assert (taken.startswith("delete Job facts-train"), started) == (True, "job train")
    made = jobs(story)["train"]["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
    assert made == asked.get("queueName")
    assert story.step("train")["attempt"] == 2
    assert "lastFailure" not in story.job["status"], "nothing failed"
    assert "JobDeleted" not in story.events


def test_a_job_that_kueue_itself_queued_is_left_to_it() -> None:
    story = queued()
    story.edit(scheduling={})
    assert story.passes(3) == [], "its default queue would take each new attempt, too"


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


FP8 = {"quantization": {"products": "FP8"}}
OWN = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]} for zone in "ab"]
        }
    }
}


def fits(terms: list[Object], labels: dict[str, str]) -> bool:
    """Whether a node may be taken, as Kubernetes reads terms of nodes' labels."""

    def holds(asked: Object) -> bool:
        named: bool = labels.get(asked["key"]) in asked["values"]
        return named if asked["operator"] == "In" else not named

    return any(all(holds(asked) for asked in term["matchExpressions"]) for term in terms)


@pytest.mark.parametrize(
    ("capability", "taken"),
    [
        ("7.5", False),
        ("8.0", False),
        ("8.6", False),
        ("8.9", True),
        ("9.0", True),
        ("10.0", True),
        ("12.0", True),
        (None, True),
    ],
)
@pytest.mark.parametrize("template", [{}, {"affinity": OWN}], ids=["", "own affinity"])
def test_what_multiplies_in_fp8_takes_no_gpu_that_is_known_to_have_none(
    capability: str | None, taken: bool, template: dict[str, Any]
) -> None:
    story = Story(make_job(parallelism=ON_GPUS, training=FP8, podTemplate=template))
    story.to_the_end()
    of = {step: body["spec"]["template"]["spec"].get("affinity", {}) for step, body in jobs(story).items()}
    terms = of["train"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    major, minor = capability.split(".") if capability else (None, None)
    told = {"nvidia.com/gpu.compute.major": major, "nvidia.com/gpu.compute.minor": minor, "zone": "b"}
    assert fits(terms, {label: value for label, value in told.items() if value}) == taken
    assert fits(terms, {"zone": "c"}) == (not template), "the job's own terms stand"
    assert of["evaluate"] == template.get("affinity", {})
