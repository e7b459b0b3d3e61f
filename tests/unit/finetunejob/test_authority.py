"""Who has the last word over a job: delete, hold, suspend ─ facts ─ how it ended ─ admission ─ the next step."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.builders import SERVING, Namespace, data_config_map, make_job
from tests.story import Story

from finetune_operator.decision import Ref, SuspendJob
from finetune_operator.meta import Object
from finetune_operator.names import ANNOTATION_SUSPENDED, FIELD_MANAGER
from finetune_operator.settings import Settings

UNSERVABLE = {"template": {"engine": {"type": "VLLM"}}, "artifact": "q4"}
ASKS_VLLM = {"engine": "VLLM"}  # which needs an image of the chart's
FULL_CHART = Settings(evaluator_image="evaluator")


def succeeded_story(**fields: Any) -> Story:
    """A job that has succeeded and handed over, if it serves."""
    story = Story(make_job(**fields), settings=FULL_CHART)
    story.to_the_end()
    if story.job["spec"].get("serving"):
        serve(story)
        story.passes()
    assert "Succeeded" in story.conditions()
    return story


def serve(story: Story, **spec: Any) -> Object:
    """The ModelServe that was applied, as its controller leaves it when it serves."""
    (action,) = story.decide().actions
    body: Object = action.body  # type: ignore[union-attr]
    status = {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True", "reason": "Serving"}]}
    found = {**body, "metadata": {**body["metadata"], "generation": 1}, "spec": {**body["spec"], **spec}, "status": status}
    story.space.named[Ref("ModelServe", "facts")] = found
    return found


# ── How it ended outweighs the chart and suspend ──────────────────────────────────────────────────────────────────────


def test_a_chart_that_lost_an_image_unmakes_no_success() -> None:
    story = succeeded_story(evaluation=ASKS_VLLM, serving=SERVING)
    before = json.dumps(story.job["status"], sort_keys=True)
    story.settings = Settings()
    assert story.passes() == []
    story.settings = FULL_CHART
    assert story.passes() == []
    assert json.dumps(story.job["status"], sort_keys=True) == before


@pytest.mark.parametrize("restored", [True, False])
def test_suspending_a_finished_job_unmakes_no_success_and_hands_nothing_over_again(restored: bool) -> None:
    story = succeeded_story(serving=SERVING)
    story.space.named[Ref("ModelServe", "facts")] = None  # an SRE took it away
    story.edit(suspend=True)
    if restored:
        story.passes()
        story.edit(suspend=False)
    assert story.passes() == []
    assert story.conditions() == {"Ready": ("True", "Succeeded"), "Succeeded": ("True", "Succeeded")} | fits(story)


def test_another_spec_is_another_question() -> None:
    story = succeeded_story()
    story.edit(evaluation={"gates": [{"name": "any", "metric": "loss", "max": 0.001}]})
    story.passes()
    assert story.conditions()["Failed"] == ("True", "GateFailed")


# ── A spec that can't be run takes nothing away, and suspend counts all the same ──────────────────────────────────────


def test_an_edit_that_can_not_be_run_keeps_what_was_done() -> None:
    story = succeeded_story()
    before = story.job["status"]
    story.edit(serving=UNSERVABLE, training={"seed": 7})
    assert story.passes() == []
    assert story.conditions()["Stalled"] == ("True", "InvalidSpec")
    kept = ("steps", "artifacts", "scores", "model", "dataset", "run", "runNumber")
    assert {k: story.job["status"][k] for k in kept} == {k: before[k] for k in kept}
    assert story.job["status"]["observedGeneration"] == 2
    story.edit(serving=None, training={})
    assert story.passes() == []
    assert "Succeeded" in story.conditions()


def test_a_refused_edit_does_not_touch_the_step_at_work_and_suspend_stops_it() -> None:
    story = Story(make_job())
    story.passes()
    story.edit(serving=UNSERVABLE, training={"seed": 7})
    assert story.passes() == []
    story.edit(suspend=True)
    (stop,) = story.decide().actions
    assert isinstance(stop, SuspendJob)
    assert stop.suspend
    story.one_pass()
    assert story.conditions()["Ready"] == ("False", "Suspended")


def test_a_refused_hand_over_starts_no_further_step_and_reads_what_the_one_at_work_reports() -> None:
    story = Story(make_job())
    story.passes()
    story.edit(serving=UNSERVABLE)
    assert story.passes() == []
    story.succeed()
    assert story.passes() == []
    assert story.step("prepare")["state"] == "Succeeded"
    assert story.conditions()["Stalled"] == ("True", "InvalidSpec")
    story.edit(serving=SERVING)
    assert story.one_pass()[-1] == "job train"


# ── Whoever suspended a Job resumes it ────────────────────────────────────────────────────────────────────────────────


def suspend(story: Story, yes: bool) -> None:
    story.space.jobs[story.space.running()["metadata"]["name"]]["spec"]["suspend"] = yes


def test_a_job_that_somebody_else_suspended_is_left_to_them() -> None:
    story = Story(make_job())
    story.passes()
    suspend(story, True)
    pods, story.space.pods = story.space.pods, {}
    assert story.passes() == []
    assert story.conditions()["Reconciling"] == ("True", "JobSuspended")
    story.edit(suspend=True)
    assert story.passes() == []
    story.edit(suspend=False)
    assert story.passes() == []
    suspend(story, False)
    story.space.pods = pods
    story.passes()
    assert story.conditions()["Reconciling"] == ("True", "Preparing")


def test_what_we_suspended_goes_on_though_the_status_that_told_of_it_was_lost() -> None:
    """A deletion in the same pass that got no answer left a suspended Job that was taken for somebody else's, for ever."""
    story = Story(make_job())
    story.passes()
    before = story.job["status"]
    story.edit(suspend=True)
    assert story.one_pass() == ["SuspendJob"]
    suspend(story, True)
    story.space.running()["metadata"]["annotations"] = {ANNOTATION_SUSPENDED: "true"}
    story.job["status"] = before
    assert story.passes() == []
    story.edit(suspend=False)
    assert story.one_pass() == ["SuspendJob"]


def test_what_a_release_without_that_record_suspended_goes_on() -> None:
    story = Story(make_job())
    story.passes()
    story.edit(suspend=True)
    story.one_pass()
    suspend(story, True)
    for step in story.job["status"]["steps"]:
        step.pop("suspended", None)
    story.edit(suspend=False)
    assert story.one_pass() == ["SuspendJob"]


# ── What others own of a ModelServe stays theirs ──────────────────────────────────────────────────────────────────────

REPLICAS = {"template": {**SERVING["template"], "replicas": 1}}


def test_a_hand_over_is_done_once_and_a_hotfix_above_it_stays() -> None:
    story = Story(make_job(serving=REPLICAS))
    story.to_the_end()
    served = serve(story)
    served["status"]["conditions"][0]["type"] = "Reconciling"
    story.one_pass()
    served["spec"]["engine"] = {"type": "LlamaCpp", "image": "hotfix"}
    assert story.passes() == []


def test_replicas_that_an_autoscaler_set_are_left_out_of_the_next_hand_over() -> None:
    story = Story(make_job(serving=REPLICAS))
    story.to_the_end()
    served = serve(story)
    story.passes()
    served["spec"]["replicas"] = 5
    served["metadata"]["managedFields"] = [{"manager": "hpa", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]
    story.edit(training={"seed": 7})
    story.to_the_end()
    (action,) = story.decide().actions
    assert "replicas" not in action.body["spec"]  # type: ignore[union-attr]
    served["metadata"]["managedFields"][0]["manager"] = FIELD_MANAGER
    (action,) = story.decide().actions
    assert action.body["spec"]["replicas"] == 1  # type: ignore[union-attr]


# ── A run is what users wrote, not what a release makes of it ─────────────────────────────────────────────────────────


def test_an_upgrade_and_an_edit_beside_the_run_stop_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(make_job(), space=Namespace(data_config_map()))
    story.passes()
    story.succeed()
    story.passes()
    monkeypatch.setattr("finetune_trainer.contract.training.EPOCHS", 5.0)
    story.edit(retry={"maxRetries": 7})
    assert story.passes() == []
    assert story.job["status"]["runNumber"] == 1
    story.edit(training={"epochs": 2})
    assert "delete Job" in " ".join(story.passes())


def fits(story: Story) -> dict[str, tuple[str, str]]:
    return {k: v for k, v in story.conditions().items() if k == "Fits"}
