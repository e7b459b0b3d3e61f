"""How long a pod may take to start, or to be made, before somebody is told."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.builders import NOW, make_job, make_pod, stamp
from tests.story import Story

from finetune_operator.decision import Ref
from finetune_operator.finetunejob.observed import Attempt, observe
from finetune_operator.finetunejob.unstarted import LONG_START_SECONDS, no_pod, waiting_for
from finetune_operator.refusals import REFUSAL


def first_attempt(*, starts: bool) -> Attempt:
    """The attempt of a Job that was made at NOW. Its pod is being started since then, or was never made."""
    story = Story(make_job())
    story.one_pass()
    job = story.space.running()
    name = job["metadata"]["name"]
    story.space.pods = {name: make_pod(job, phase="Pending", startTime=stamp())} if starts else {}
    (found,) = observe(story.space.observed(), story.job["metadata"]["uid"], NOW).attempts
    return found


@pytest.mark.parametrize(("seconds", "told"), [(LONG_START_SECONDS - 1, False), (LONG_START_SECONDS, True)])
def test_what_takes_long_is_told_after_its_time(seconds: float, told: bool) -> None:
    now = NOW + timedelta(seconds=seconds)
    starting, missing = waiting_for(first_attempt(starts=True), now), no_pod(first_attempt(starts=False), {}, now)
    assert (starting is not None, missing is not None) == (told, told)
    assert waiting_for(first_attempt(starts=False), now) is None
    assert no_pod(first_attempt(starts=True), {}, now) is None


def test_what_refused_a_pod_is_told_in_its_own_words() -> None:
    attempt, now = first_attempt(starts=False), NOW + timedelta(seconds=LONG_START_SECONDS)
    for event, said in (({"note": "exceeded quota: team"}, "exceeded quota: team"), ({}, "")):
        found = no_pod(attempt, {Ref(REFUSAL, attempt.job): event}, now)
        assert found is not None
        assert found.message == f"its Job has no pod: {said}"
