"""Which run a spec asks for: the one that the status tells of, or another."""

from __future__ import annotations

import pytest
from tests.builders import NOW, make_job
from tests.story import Story

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.finetunejob.runs import begins_another, current_run
from finetune_operator.meta import Condition, stamp
from finetune_operator.names import ANNOTATION_RETRY


@pytest.mark.parametrize(
    ("condition", "status", "again"), [("Failed", "True", True), ("Failed", "False", False), ("Ready", "True", False)]
)
def test_a_retry_begins_another_run_of_a_job_that_has_failed(condition: str, status: str, again: bool) -> None:
    story = Story(make_job(annotations={}))
    story.passes()
    told = {"type": condition, "status": status, "reason": "R", "message": "", "lastTransitionTime": stamp(NOW)}
    story.job["status"]["conditions"] = [told]
    assert not begins_another(FineTuneJob.model_validate(story.job))
    story.job["metadata"]["annotations"][ANNOTATION_RETRY] = "1"
    assert begins_another(FineTuneJob.model_validate(story.job)) is again


@pytest.mark.parametrize(("asked", "known", "kept"), [("1", None, "1"), ("2", "1", "2"), (None, "1", "1"), (None, None, None)])
def test_a_retry_is_asked_for_once(asked: str | None, known: str | None, kept: str | None) -> None:
    story = Story(make_job(annotations={} if asked is None else {ANNOTATION_RETRY: asked}))
    story.passes()
    story.job["status"] |= {"retryToken": known}
    job = FineTuneJob.model_validate(story.job)
    _, status = current_run(job)
    assert status.retry_token == kept
    failed = Condition(type="Failed", status="True", reason="R", message="", last_transition_time=stamp(NOW))
    told = job.model_copy(update={"status": status.model_copy(update={"conditions": [failed]})})
    assert not begins_another(told)


def test_an_edit_beside_the_run_gives_each_step_its_budget_anew() -> None:
    story = Story(make_job())
    story.passes()
    story.job["status"]["steps"][0] |= {"state": "Failed", "retries": 2}
    story.edit(retry={"maxRetries": 5})
    run, status = current_run(FineTuneJob.model_validate(story.job))
    assert run.config_map == story.job["status"]["run"]
    assert (status.steps[0].state, status.steps[0].retries) == ("Pending", 0)
