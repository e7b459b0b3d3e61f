"""What a failure of training costs: more where it came no further; and which nodes the next attempts avoid."""

from __future__ import annotations

from typing import Any

import pytest
from tests.builders import make_job, reported_failure
from tests.story import Story

from finetune_operator.api.finetunejob import FineTuneJob, Stage
from finetune_operator.api.finetunejob_status import FineTuneJobStatus, ProgressStatus, StepStatus
from finetune_operator.finetunejob.failures import Failure
from finetune_operator.finetunejob.placement import PREFERRED, placement
from finetune_operator.finetunejob.retries import avoided, cost, reached_by, with_node
from finetune_trainer.contract.exits import ExitCode, Retry
from finetune_trainer.contract.pipeline import Step

TRAIN_STEP = Step("train", "train", (), needs_gpu=True)
PREPARE_STEP = Step("prepare", "prepare", (), needs_gpu=False)
CRASH = Failure(Retry.COUNTED, "UnexpectedError", "", node="bad")
CRASHED = reported_failure(ExitCode.UNEXPECTED, "UnexpectedError", "the step crashed")


@pytest.mark.parametrize(
    ("step", "before", "reached", "failure", "expected"),
    [
        (TRAIN_STEP, None, 0, CRASH, 1),
        (TRAIN_STEP, 0, 0, CRASH, 2),
        (TRAIN_STEP, 40, 40, CRASH, 2),
        (TRAIN_STEP, 40, 41, CRASH, 1),
        (TRAIN_STEP, 40, 0, Failure(Retry.FREE, "NodeLost", ""), 0),
        (PREPARE_STEP, None, 0, CRASH, 1),
    ],
)
def test_a_retry_without_progress_counts_double(
    step: Step, before: int | None, reached: int, failure: Failure, expected: int
) -> None:
    assert cost(step, StepStatus(name=step.name, attempt=2, reached=before), failure, reached) == expected


@pytest.mark.parametrize(
    ("progress", "reached"),
    [(ProgressStatus(step="train", current=7), 7), (ProgressStatus(step="prepare", current=7), 0), (None, 0)],
)
def test_training_has_come_as_far_as_it_said_itself(progress: ProgressStatus | None, reached: int) -> None:
    assert reached_by(FineTuneJobStatus(progress=progress), TRAIN_STEP) == reached


def failed_on(*failures: Failure) -> StepStatus:
    record = StepStatus(name="train")
    for failure in failures:
        record = record.model_copy(update={"failed_nodes": with_node(record, failure)})
    return record


def test_a_node_is_avoided_from_its_second_failure_on() -> None:
    lost = Failure(Retry.FREE, "NodeLost", "", node="bad")
    assert avoided(failed_on(CRASH)) == []
    assert avoided(failed_on(CRASH, lost)) == ["bad"]
    assert avoided(failed_on(CRASH, Failure(Retry.FREE, "Evicted", "", node="bad"))) == ["bad"]
    assert avoided(failed_on(CRASH, Failure(Retry.COUNTED, "Hang", "", node="other"))) == []


def test_what_no_node_is_to_blame_for_blames_none() -> None:
    too_large = Failure(Retry.SMALLER, "OutOfGpuMemory", "", node="good")
    preempted = Failure(Retry.FREE, "PreemptionByScheduler", "", node="good")
    assert failed_on(too_large, too_large, preempted, preempted).failed_nodes is None


def test_only_so_many_nodes_are_remembered() -> None:
    record = failed_on(*(Failure(Retry.COUNTED, "Hang", "", node=f"n{i}") for i in range(40)))
    assert list(record.failed_nodes or ()) == [f"n{i}" for i in range(24, 40)]


def at_training(**spec: Any) -> Story:
    story = Story(make_job(**spec))
    story.passes(2)
    story.succeed()
    story.passes(2)
    return story


def fail_again(story: Story) -> dict[str, Any]:
    """The training pod crashes where it was; the pod of the next attempt."""
    story.space.end(*CRASHED)
    story.passes(4)
    jobs = [body for body in story.created if body["metadata"].get("labels", {}).get("finetune.dev/step") == "train"]
    pod: dict[str, Any] = jobs[-1]["spec"]["template"]["spec"]
    return pod


def test_the_third_attempt_is_kept_off_the_node_of_the_first_two_as_far_as_there_are_others() -> None:
    mine = {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [mine]}}
    story = at_training(podTemplate={"affinity": affinity}, retry={"maxRetries": 9})
    assert fail_again(story)["affinity"] == affinity
    asked = fail_again(story)["affinity"]["nodeAffinity"]
    kept, away = asked["preferredDuringSchedulingIgnoredDuringExecution"]
    assert kept == mine
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}]
    assert away == {"weight": 100, "preference": {"matchFields": fields}}
    assert set(asked) == {"preferredDuringSchedulingIgnoredDuringExecution"}, "a cluster of one node goes on"


def preferred(pod: dict[str, Any]) -> list[Any]:
    affinity = pod.get("affinity", {}).get("nodeAffinity", {})
    wishes: list[Any] = affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])
    return [wish["preference"] for wish in wishes]


def train_on(story: Story, gpu: str) -> None:
    """The training pod tells of a step, and of the GPU that it runs on."""
    pod = story.space.running()["metadata"]["name"] + "-x1y2z"
    story.space.progress[pod] = {"step_name": "train", "step": 4, "total": 40, "gpu": gpu}
    story.passes(1)


H100 = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-80GB-HBM3-SHARED"]}


def test_training_that_goes_on_prefers_the_gpu_that_it_ran_on() -> None:
    story = at_training(retry={"maxRetries": 9})
    train_on(story, "NVIDIA H100 80GB HBM3")
    assert story.step("train")["gpu"] == "NVIDIA H100 80GB HBM3"
    assert preferred(fail_again(story)) == [{"matchExpressions": [H100]}]
    away = {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}]}
    assert preferred(fail_again(story)) == [away, {"matchExpressions": [H100]}]
    train_on(story, "NVIDIA A100-SXM4-40GB")
    assert preferred(fail_again(story))[-1]["matchExpressions"][0]["values"][0] == "NVIDIA-A100-SXM4-40GB"


@pytest.mark.parametrize(
    "spec",
    [
        {"podTemplate": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"}}},
        {"stages": {"train": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"}}}},
        {"podTemplate": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {"matchExpressions": [{"key": "nvidia.com/gpu.product", "operator": "Exists"}]}}
        ]}}}},
    ],
)  # fmt: skip
def test_a_job_that_says_which_gpu_it_wants_is_taken_at_its_word(spec: dict[str, Any]) -> None:
    story = at_training(retry={"maxRetries": 9}, **spec)
    train_on(story, "NVIDIA H100 80GB HBM3")
    assert {"matchExpressions": [H100]} not in preferred(fail_again(story))


def test_a_gpu_whose_name_no_label_can_have_is_looked_for_nowhere() -> None:
    story = at_training(retry={"maxRetries": 9})
    train_on(story, " ()")
    assert preferred(fail_again(story)) == []


@pytest.mark.parametrize(
    ("gpu", "product"), [("AMD MI300x", "AMD-MI300x"), ("A" * 63, "A" * 56), ("GeForce (mobile)-", "GeForce-mobile")]
)
def test_a_gpu_is_looked_for_by_what_a_label_can_have_of_its_name(gpu: str, product: str) -> None:
    (wish,) = placement(FineTuneJob.model_validate(make_job()), Stage(), gpu=gpu)["affinity"]["nodeAffinity"][PREFERRED]
    assert wish["weight"] == 50, "a node to avoid, 100, counts more"
    assert wish["preference"]["matchExpressions"][0]["values"] == [product, f"{product}-SHARED"]


def test_training_that_crashes_at_once_each_time_ends_sooner() -> None:
    story = at_training(retry={"maxRetries": 3})
    fail_again(story)
    assert story.job["status"]["lastFailure"]["message"] == "the step crashed"
    assert story.step("train")["reached"] == 0
    for _ in range(2):
        fail_again(story)
    assert story.step("train")["attempt"] == 3
    assert story.step("train")["state"] == "Failed"
