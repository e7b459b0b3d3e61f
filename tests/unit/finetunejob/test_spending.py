"""GPU time: counted once, whatever takes the pods away; what it costs; and a budget that is never passed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.builders import NOW, make_job, make_pod, reported_failure, stamp
from tests.story import SETTINGS, Story

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import FineTuneJobStatus, Holding
from finetune_operator.decision import Decision
from finetune_operator.finetunejob.budget import Limit, enforce, seconds_left
from finetune_operator.finetunejob.runs import current_run
from finetune_operator.finetunejob.spending import spent
from finetune_operator.platforms import Platform, Profile
from finetune_operator.settings import Settings
from finetune_trainer.contract.exits import ExitCode

TWO_GPUS: dict[str, Any] = {"parallelism": {"gpusPerNode": 2}, "artifacts": []}
PRICED = Settings(ended_seconds=10**9, platform=Platform(profiles={"a100": Profile(gpu_hour_price=2.5, currency="EUR")}))
MINUTE = 60


def training(settings: Settings = SETTINGS, **spec: Any) -> Story:
    """A job whose training has just been started, on two GPUs. Each pass takes ten minutes; its pod runs since minute 0."""
    story = Story(make_job(**{**TWO_GPUS, **spec}), settings=settings)
    story.passes()
    story.succeed()
    while "job train" not in story.one_pass():
        pass
    return story


def begin(story: Story) -> None:
    """The pod of the attempt at work starts now."""
    job = story.space.running()
    running = [{"name": "step", "state": {"running": {"startedAt": stamp(story.minute * MINUTE)}}}]
    pod = make_pod(job, containerStatuses=running)
    pod["status"]["startTime"] = stamp(story.minute * MINUTE)
    story.space.pods[job["metadata"]["name"]] = pod


def vanish(story: Story) -> None:
    story.space.pods.pop(story.space.running()["metadata"]["name"])


def gpu_seconds(story: Story) -> int:
    return int(story.job["status"].get("gpuSeconds", 0))


def test_what_a_suspended_job_held_is_counted_and_what_it_does_not_hold_is_not() -> None:
    story = training()
    begin(story)
    story.one_pass()
    assert story.job["status"]["holding"] == {
        "job": story.step("train")["job"],
        "gpus": 2,
        "since": stamp((story.minute - 10) * 60),
    }
    assert gpu_seconds(story) == 0, "it is counted once the GPUs are given back"
    vanish(story)  # its Job was suspended, by whomever
    story.space.running()["spec"]["suspend"] = True
    story.one_pass()
    assert gpu_seconds(story) == 2 * 20 * MINUTE
    assert "holding" not in story.job["status"]
    story.passes(6)
    assert gpu_seconds(story) == 2 * 20 * MINUTE
    story.space.running()["spec"]["suspend"] = False
    begin(story)
    story.one_pass()
    vanish(story)
    story.one_pass()
    assert gpu_seconds(story) == 2 * 40 * MINUTE


def test_what_is_held_is_so_from_when_it_was_seen_first() -> None:
    story = training()
    begin(story)
    story.one_pass()
    since = story.job["status"]["holding"]["since"]
    begin(story)  # another pod of the attempt, that started later, tells more
    story.one_pass()
    assert story.job["status"]["holding"]["since"] == since


def test_an_attempt_is_counted_once_whether_its_pod_or_its_job_ends_first() -> None:
    story = training()
    begin(story)
    story.one_pass()
    name = story.space.running()["metadata"]["name"]
    began = story.space.pods[name]["status"]["startTime"]
    at = stamp((story.minute + 10) * MINUTE - 5)  # just before the next pass
    ended = {"exitCode": 20, "reason": "Error", "startedAt": began, "finishedAt": at}
    status = {"containerStatuses": [{"name": "step", "state": {"terminated": ended}}]}
    story.space.pods[name] = make_pod(story.space.running(), phase="Failed", **status)
    story.one_pass()
    counted = gpu_seconds(story)
    assert counted == 2 * (20 * MINUTE - 5)
    failed = {"type": "Failed", "status": "True", "lastTransitionTime": at}
    story.space.jobs[name]["status"]["conditions"] = [failed]
    story.one_pass()
    assert gpu_seconds(story) == counted


def test_an_attempt_that_ended_unseen_is_counted() -> None:
    story = training()
    story.succeed()  # 60 s, while the operator was away
    story.one_pass()
    assert gpu_seconds(story) == 2 * MINUTE


def test_a_job_whose_run_was_edited_away_keeps_what_it_held() -> None:
    story = training()
    begin(story)
    story.one_pass()
    story.edit(training={"epochs": 7})
    story.passes(2)
    assert gpu_seconds(story) >= 2 * 20 * MINUTE


def test_a_deleted_job_is_counted() -> None:
    story = training()
    begin(story)
    story.one_pass()
    name = story.space.running()["metadata"]["name"]
    del story.space.jobs[name], story.space.pods[name]
    story.one_pass()
    assert gpu_seconds(story) == 2 * 20 * MINUTE


def test_cpus_cost_no_gpu_time() -> None:
    story = Story(make_job())
    story.to_the_end()
    assert gpu_seconds(story) == 0


def test_the_cost_follows_from_the_profiles_price() -> None:
    story = training(PRICED, profile="a100")
    story.succeed()
    story.one_pass()
    assert story.job["status"]["cost"] == {"amount": 0.08, "currency": "EUR", "gpuHourPrice": 2.5}
    assert "cost" not in training().job["status"]


# ── spec.budget ───────────────────────────────────────────────────────────────────────────────────────────────────────


def limited(hours: float) -> Story:
    story = training(budget={"gpuHours": hours})
    begin(story)
    return story


def message(story: Story) -> str:
    return str(story.job["status"]["lastFailure"]["message"])


def test_a_job_is_stopped_before_its_budget_is_passed() -> None:
    story = limited(1)  # half an hour on two GPUs; a pass takes ten minutes, and a pod two to stop
    story.one_pass()
    assert "Failed" not in story.conditions()
    decision = story.decide()
    assert next_look(decision) <= 18 * MINUTE
    story.minute += 9  # 29 minutes after the start, were nothing done at 28
    assert "delete Job" in " ".join(story.passes(1))
    assert story.conditions()["Failed"] == ("True", "BudgetExhausted")
    assert "of the 1 GPU-hours of spec.budget are used, and train would pass them; raise it" in message(story)
    assert story.passes() == []


def next_look(decision: Decision) -> float:
    assert decision.requeue_after is not None
    return decision.requeue_after


def test_it_is_looked_at_again_when_the_budget_ends() -> None:
    story = limited(1)
    began = story.minute
    story.one_pass()
    job = FineTuneJob.model_validate(story.job)
    limit = Limit(job, current_run(job)[0], 120)
    assert seconds_left(limit, job.status, NOW + timedelta(minutes=began)) == 28 * MINUTE
    assert seconds_left(limit, job.status, NOW + timedelta(minutes=began + 28)) is None
    a_second_before = NOW + timedelta(minutes=began + 28, seconds=-1)
    assert seconds_left(limit, job.status, a_second_before) == 1
    assert enforce(limit, job.status, a_second_before) == job.status
    over = enforce(limit, job.status, NOW + timedelta(minutes=began + 28))
    assert [step.name for step in over.steps if step.state == "Failed"] == ["train"]
    assert seconds_left(limit, over, a_second_before) is None, "nothing is at work that it could end"


def test_no_step_is_started_that_the_budget_does_not_suffice_for() -> None:
    story = Story(make_job(**TWO_GPUS, budget={"gpuHours": 0.05}))  # 90 s on two GPUs, less than a pod takes to stop
    story.passes()
    story.succeed()
    assert [what for what in story.passes() if what.startswith("job")] == []
    assert story.conditions()["Failed"] == ("True", "BudgetExhausted")


def test_a_budget_that_was_raised_goes_on() -> None:
    story = limited(1)
    story.passes(4)
    assert story.conditions()["Failed"] == ("True", "BudgetExhausted")
    story.edit(budget={"gpuHours": 100})
    assert story.to_the_end()[0] == "train"
    assert "Succeeded" in story.conditions()


def test_a_budget_stops_no_suspended_job_and_no_step_on_cpus() -> None:
    suspended = limited(1)
    suspended.edit(suspend=True)
    suspended.passes(6)
    assert suspended.conditions()["Ready"] == ("False", "Suspended")
    on_cpus = Story(make_job(budget={"gpuHours": 0.001}))
    on_cpus.to_the_end()
    assert "Succeeded" in on_cpus.conditions()


def test_failures_count_against_the_budget() -> None:
    story = training(budget={"gpuHours": 0.2})
    story.space.end(*reported_failure(ExitCode.SOURCE_UNAVAILABLE, "SourceUnavailable", "away"), seconds=300)
    story.passes(3)
    assert story.conditions()["Failed"] == ("True", "BudgetExhausted")


def test_what_is_spent_is_what_was_counted_and_what_is_held_now() -> None:
    counted = FineTuneJobStatus(gpu_seconds=600)
    assert spent(counted, NOW) == 600
    held = counted.model_copy(update={"holding": Holding(job="train", gpus=2, since=stamp(0))})
    assert spent(held, NOW + timedelta(seconds=30)) == 660
