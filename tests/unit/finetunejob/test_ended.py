"""Jobs of attempts that have ended: when they go, and which stay."""

from __future__ import annotations

from datetime import datetime

import pytest
from tests.builders import NOW, make_job, reported_failure
from tests.story import Story

from finetune_operator.decision import Delete
from finetune_operator.settings import Settings
from finetune_trainer.contract.exits import ExitCode


def story_of(seconds: float = 900) -> Story:
    return Story(make_job(), settings=Settings(ended_seconds=seconds))


def steps_with_jobs(story: Story) -> list[str]:
    return [j["metadata"]["labels"]["finetune.dev/step"] for j in story.space.jobs.values()]


def test_a_job_that_has_succeeded_costs_the_cluster_nothing_after_a_while() -> None:
    story = story_of()
    story.to_the_end()
    story.passes(4)
    assert story.conditions()["Succeeded"] == ("True", "Succeeded")
    assert (story.space.jobs, story.space.pods) == ({}, {})
    assert story.passes(3) == []
    assert story.decide().tidy_after is None


def test_a_job_stays_for_a_while_and_the_pass_that_removes_it_is_asked_for() -> None:
    story = story_of()
    story.one_pass()
    story.succeed()  # a minute after the story began
    soon = story.decide().tidy_after
    story.one_pass()
    assert steps_with_jobs(story) == ["prepare", "train"]
    assert soon is not None
    assert 0 < soon < 900
    story.passes(2)
    assert steps_with_jobs(story) == ["train"]


def test_where_nothing_else_happens_the_pass_that_removes_the_next_job_is_asked_for() -> None:
    story = story_of(86_400)
    story.to_the_end()
    assert 0 < (story.decide().tidy_after or 0) < 86_400


def test_the_pass_that_removes_the_last_ones_asks_for_no_other() -> None:
    story = story_of(86_400)
    story.to_the_end()
    story.minute += 2 * 1440
    assert [a.kind for a in story.decide().actions if isinstance(a, Delete)] == ["Job"] * len(story.space.jobs)
    assert story.decide().tidy_after is None


@pytest.mark.parametrize(("seconds", "goes"), [(900, True), (901, False)])
def test_a_job_goes_with_the_last_second_of_its_time(seconds: float, goes: bool) -> None:
    story = story_of(seconds)
    story.one_pass()
    story.succeed()
    story.one_pass()
    (ended,) = [job for job in story.space.jobs.values() if job["metadata"]["labels"]["finetune.dev/step"] == "prepare"]
    finished = next(c["lastTransitionTime"] for c in ended["status"]["conditions"] if c["type"] == "Complete")
    story.minute = round((datetime.fromisoformat(finished) - NOW).total_seconds()) // 60 + 15
    assert (ended["metadata"]["name"] in [a.name for a in story.decide().actions if isinstance(a, Delete)]) is goes


def test_nothing_goes_before_the_status_tells_of_it() -> None:
    story = story_of(0)
    story.one_pass()
    story.succeed()
    done = story.one_pass()
    assert "job train" in done
    assert not [d for d in done if d.startswith("delete")], "the status that was read does not tell of its end yet"
    assert [d for d in story.one_pass() if d.startswith("delete Job facts-prepare")]


def test_what_a_job_failed_by_stays_as_its_evidence_until_it_is_tried_again() -> None:
    story = story_of()
    story.passes()
    story.space.end(*reported_failure(ExitCode.BAD_DATA, "UnknownColumns", "no such column"))
    story.passes(5)
    assert story.conditions()["Failed"][0] == "True"
    assert steps_with_jobs(story) == ["prepare"]
    story.annotate("retry", "1")
    story.passes()
    assert [j["metadata"]["labels"]["finetune.dev/attempt"] for j in story.space.jobs.values()] == ["1"]
    assert story.conditions()["Ready"][1] == "Preparing"
