"""When an attempt that failed is followed by another."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.builders import NOW, make_job
from tests.story import SETTINGS, Story

from finetune_operator.api.finetunejob_status import FineTuneJobStatus, StepStatus
from finetune_operator.decision import Create, Decision, pause_after
from finetune_operator.finetunejob import policy
from finetune_operator.finetunejob.at_work import suspended_by_us
from finetune_operator.meta import Condition
from finetune_trainer.contract.exits import ExitCode


def ended(story: Story, code: int) -> float:
    """The attempt at work ends in the very second in which the operator looks again; NOW and so many seconds."""
    seconds = 600.0 * (story.minute // 10 + 1)
    story.space.end(code, None, seconds=seconds)
    return seconds


def decided(story: Story, seconds: float) -> Decision:
    return policy.decide(story.typed, story.space.observed(), SETTINGS, NOW + timedelta(seconds=seconds))


def starts(decision: Decision) -> bool:
    return any(isinstance(action, Create) and action.body["kind"] == "Job" for action in decision.actions)


def test_the_first_loss_of_a_pod_costs_no_pause_and_later_ones_do() -> None:
    story = Story(make_job())
    story.one_pass()
    seconds = ended(story, ExitCode.PREEMPTED)
    assert starts(decided(story, seconds))
    story.one_pass()
    seconds = ended(story, ExitCode.PREEMPTED)
    waits = decided(story, seconds + 5)
    assert not starts(waits)
    assert waits.requeue_after == 15
    (ready,) = (c for c in waits.status["conditions"] if c["type"] == "Ready")
    assert f"prepare is tried again at {NOW + timedelta(seconds=seconds + 20):%H:%M:%SZ}: " in ready["message"]
    assert starts(decided(story, seconds + 20))


def test_a_failure_that_counts_is_waited_for_from_the_first() -> None:
    story = Story(make_job())
    story.one_pass()
    seconds = ended(story, ExitCode.UNEXPECTED)
    assert decided(story, seconds).requeue_after == 10
    assert not starts(decided(story, seconds + 9))
    assert starts(decided(story, seconds + 10))


def test_a_node_whose_clock_is_ahead_held_its_gpus_for_no_time() -> None:
    story = Story(make_job(parallelism={"gpusPerNode": 1}))
    story.passes()
    story.succeed()
    story.passes()
    story.space.end(ExitCode.UNEXPECTED, None, seconds=-30)
    story.one_pass()
    assert story.job["status"]["gpuSeconds"] == 0


READY, ANOTHER = ({"type": kind, "status": "False", "message": "", "last_transition_time": ""} for kind in ("Ready", "Fits"))


@pytest.mark.parametrize(
    ("record", "condition", "ours"),
    [
        ({"suspended": True}, READY | {"reason": "Training"}, True),
        ({"suspended": False}, READY | {"reason": "Suspended"}, False),
        ({}, READY | {"reason": "Suspended"}, True),
        ({}, READY | {"reason": "Training"}, False),
        ({}, ANOTHER | {"reason": "Suspended"}, False),
    ],
)
def test_who_suspended_a_job_is_in_its_steps_record_or_was_told_by_an_earlier_release(
    record: dict[str, Any], condition: dict[str, Any], ours: bool
) -> None:
    status = FineTuneJobStatus(conditions=[Condition.model_validate(condition)])
    assert suspended_by_us(status, StepStatus(name="train", **record)) is ours


def test_pauses_double_up_to_five_minutes() -> None:
    assert [pause_after(failures) for failures in (1, 2, 3, 5, 6, 11, 12, 99)] == [10, 20, 40, 160, 300, 300, 300, 300]
