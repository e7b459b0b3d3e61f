"""Whole lives of a FineTuneJob: what is started, what is not, and how it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.builders import FIT, SERVING, Namespace, data_config_map, make_job, reported_failure, stamp
from tests.story import Story

from finetune_operator.decision import Apply, Create, Ref, SuspendJob
from finetune_operator.finetunejob import policy
from finetune_operator.meta import Object
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pipeline import steps
from finetune_trainer.contract.pod import ENV_HANG_AFTER, ENV_MICRO_BATCH_SIZE
from finetune_trainer.contract.reports import ArtifactFacts


def succeeded(story: Story) -> bool:
    return story.conditions().get("Succeeded") == ("True", "Succeeded")


ALL_STEPS = ["prepare", "train", "merge", "quantize-q4", "evaluate", "evaluate-q4"]


def test_the_steps_run_in_order_one_at_a_time_and_the_job_succeeds() -> None:
    story = Story(make_job())
    assert story.to_the_end() == ALL_STEPS
    assert succeeded(story)
    assert {s["state"] for s in story.job["status"]["steps"]} == {"Succeeded"}
    assert [a["name"] for a in story.job["status"]["artifacts"]] == ["adapter", "merged", "q4"]
    assert story.events == [*["StepStarted"] * len(ALL_STEPS), "Succeeded"], "one for each change: each is a request"


def test_the_base_model_that_prepare_has_fetched_is_an_artifact() -> None:
    story = Story(make_job())
    story.passes()
    made = ArtifactFacts(name="base", format="Safetensors", path="model/f/a1", digest="sha256:" + "c" * 64, bytes=10)
    story.succeed_with(story.result("prepare").model_copy(update={"artifact": made}))
    story.to_the_end()
    found = story.job["status"]["artifacts"]
    assert [a["name"] for a in found] == ["base", "adapter", "merged", "q4"]
    assert found[0]["uri"].endswith("/model/f/a1")
    assert succeeded(story)


def test_a_second_pass_over_the_same_world_does_nothing() -> None:
    story = Story(make_job())
    for _ in range(2):
        story.one_pass()
    before = json.dumps(story.job["status"], sort_keys=True)
    assert story.one_pass() == []
    assert json.dumps(story.job["status"], sort_keys=True) == before


def test_a_pass_that_was_cut_off_before_the_status_was_written_starts_nothing_twice() -> None:
    story = Story(make_job())
    job_before = story.job
    story.one_pass()
    names = set(story.space.jobs)
    story.job = job_before  # the operator was killed after it created the Job
    story.one_pass()
    assert set(story.space.jobs) == names


def test_each_attempt_is_named_in_the_status_before_it_is_started() -> None:
    story = Story(make_job())
    first = story.decide()
    assert (first.intent, first.status["steps"][0]["state"]) == (True, "Running")
    story.job = {**story.job, "status": first.status}  # and then the Job is refused
    again = story.decide()
    assert not again.intent, "the status that names it is there already"
    assert [a.body["kind"] for a in again.actions if isinstance(a, Create)][-2:] == ["ConfigMap", "Job"]


def test_an_attempt_that_the_status_does_not_know_is_ours_while_it_runs() -> None:
    story = Story(make_job())
    unnamed = story.job
    story.one_pass()
    story.job = {**unnamed, "spec": {**story.job["spec"], "suspend": True}}
    assert story.one_pass() == ["SuspendJob"]
    assert story.conditions()["Ready"] == ("False", "Suspended")
    story.job = {**unnamed, "status": {"observedGeneration": -1}}
    assert story.one_pass() == []
    (name,) = story.space.jobs
    assert (story.step("prepare")["state"], story.step("prepare")["job"]) == ("Running", name)
    assert "runs, attempt 1" in next(c["message"] for c in story.job["status"]["conditions"] if c["type"] == "Ready")


def test_attempts_that_the_status_does_not_know_count_when_they_have_ended() -> None:
    story = Story(make_job())
    unnamed = story.job
    story.passes()
    story.succeed()
    story.passes()
    story.space.end(*reported_failure(ExitCode.STORE_UNAVAILABLE, "StoreUnavailable", "no answer"))
    story.job = unnamed
    assert [a for a in story.passes() if a.startswith("job ")] == ["job train"]
    train = story.step("train")
    assert (train["attempt"], train["retries"], train["state"]) == (2, 1, "Running")


def test_after_success_nothing_is_created_whatever_is_removed() -> None:
    story = Story(make_job(serving=SERVING))
    drive_to_serving(story)
    story.one_pass()
    assert succeeded(story)
    story.space.jobs, story.space.pods, story.space.config_maps, story.space.named = {}, {}, {}, {}
    assert story.passes(4) == []
    assert succeeded(story)


def test_after_final_failure_nothing_is_created_whatever_is_removed() -> None:
    story = Story(make_job())
    story.passes()
    story.space.end(*reported_failure(ExitCode.BAD_DATA, "UnknownColumns", "spec.dataset.columns: no column question"))
    assert story.passes() == []
    assert story.conditions()["Failed"] == ("True", "UnknownColumns")
    story.space.jobs, story.space.pods, story.space.config_maps = {}, {}, {}
    assert story.passes(4) == []
    assert story.conditions()["Stalled"] == ("True", "UnknownColumns")
    assert story.step("train")["attempt"] == 0


def out_of_memory(story: Story) -> list[str]:
    """The training pod's GPU is too small. Returns what is done then."""
    told = reported_failure(ExitCode.OUT_OF_GPU_MEMORY, "OutOfGpuMemory", "the GPU's memory is too small")
    story.space.end(*told)
    return story.passes()


def asked_micro_batch(story: Story) -> str | None:
    (container,) = story.space.running()["spec"]["template"]["spec"]["containers"]
    return next((e["value"] for e in container["env"] if e["name"] == ENV_MICRO_BATCH_SIZE), None)


def test_training_that_outgrows_the_gpu_goes_on_with_smaller_micro_batches() -> None:
    story = Story(make_job(retry={"maxRetries": 0}))
    story.passes()
    story.succeed()
    story.passes()
    assert asked_micro_batch(story) is None  # 8, by the estimate
    for size in ("4", "2", "1"):
        assert out_of_memory(story) == ["job train"]
        assert asked_micro_batch(story) == size
        assert story.job["status"]["resolved"]["microBatchSize"] == int(size)
    assert f"it goes on with micro-batches of {size}" in story.job["status"]["lastFailure"]["message"]
    assert story.step("train")["retries"] == 0
    assert out_of_memory(story) == []
    assert story.conditions()["Failed"] == ("True", "OutOfGpuMemory")


def test_of_one_row_layers_keep_less_before_training_is_given_up() -> None:
    story = Story(make_job())
    story.passes()
    kept = {"micro_batch_size": 1, "gradient_checkpointing": "Selective", "kept_layers": 7}
    story.succeed_with(story.result("prepare").model_copy(update={"fit": FIT.model_copy(update=kept)}))
    story.passes()
    assert out_of_memory(story) == ["job train"]
    assert asked_micro_batch(story) == "1"
    assert out_of_memory(story) == []
    assert story.conditions()["Failed"] == ("True", "OutOfGpuMemory")


def test_training_that_outgrows_the_gpu_fails_where_the_user_wants_that() -> None:
    story = Story(make_job(retry={"onOutOfMemory": "Fail"}))
    story.passes()
    story.succeed()
    story.passes()
    assert out_of_memory(story) == []
    assert story.conditions()["Failed"] == ("True", "OutOfGpuMemory")


def test_a_hang_is_retried_and_counts_and_its_limit_reaches_the_pod() -> None:
    story = Story(make_job(retry={"maxRetries": 1, "hangAfterMedianSteps": 7}))
    story.passes()
    story.succeed()
    story.passes()
    (container,) = story.space.running()["spec"]["template"]["spec"]["containers"]
    assert {"name": ENV_HANG_AFTER, "value": "7"} in container["env"]
    told = reported_failure(ExitCode.HANG, "Hang", "no step for 400 s")
    story.space.end(*told)
    assert story.passes() == ["job train"]
    assert story.step("train")["retries"] == 1
    story.space.end(*told)
    assert story.passes() == []
    assert story.conditions()["Failed"] == ("True", "Hang")


def test_an_added_artifact_runs_its_own_steps_and_prepare_only() -> None:
    story = Story(make_job())
    story.to_the_end()
    q8 = {"name": "q8", "format": "GGUF", "quantization": "Q8_0"}
    story.edit(artifacts=[*story.job["spec"]["artifacts"], q8])
    assert story.to_the_end() == ["prepare", "quantize-q8", "evaluate-q8"]
    assert succeeded(story)
    assert story.step("train")["state"] == "Reused"
    assert [a["name"] for a in story.job["status"]["artifacts"]] == ["adapter", "merged", "q4", "q8"]


def test_an_edit_and_its_reversal_look_into_the_store_each_time() -> None:
    story = Story(make_job())
    story.to_the_end()
    story.edit(artifacts=[])
    assert story.to_the_end() == ["prepare"]
    story.edit(artifacts=make_job()["spec"]["artifacts"])
    assert story.to_the_end() == ["prepare"]
    assert succeeded(story)


def test_an_edit_while_training_stops_the_old_run_before_the_new_one_starts() -> None:
    story = Story(make_job())
    story.passes()
    story.succeed()
    story.passes()
    (training,) = [j for j in story.space.jobs if "train" in j]
    story.edit(training={"maxSteps": 7})
    acted = story.passes()
    assert f"delete Job {training}" in acted
    assert acted[-1] == "job prepare"


def test_an_edit_that_reaches_no_pod_starts_nothing() -> None:
    story = Story(make_job())
    story.to_the_end()
    story.edit(stages={"train": {"nodeSelector": {"disk": "fast"}}})
    assert story.passes() == []
    assert succeeded(story)
    assert story.job["status"]["observedGeneration"] == 2


def test_a_deleted_pod_is_replaced_without_counting() -> None:
    story = Story(make_job(retry={"maxRetries": 0}))
    story.passes()
    story.succeed()
    story.passes()
    name = story.space.running()["metadata"]["name"]
    story.space.end(ExitCode.PREEMPTED, None)
    del story.space.pods[name]  # the Job has failed and nothing tells how
    assert "job train" in story.passes()
    assert (story.step("train")["attempt"], story.step("train")["retries"]) == (2, 0)
    assert story.to_the_end() == ["merge", "quantize-q4", "evaluate", "evaluate-q4"]
    assert succeeded(story)


def test_a_job_deleted_from_outside_is_replaced_when_its_pod_is_gone() -> None:
    story = Story(make_job())
    story.passes()
    name = story.space.running()["metadata"]["name"]
    del story.space.jobs[name]
    assert story.passes() == []  # the pod still ends; two never work at once
    assert story.conditions()["Ready"] == ("False", "Stopping")
    del story.space.pods[name]
    assert story.passes(1) == ["job prepare"]
    assert story.step("prepare")["attempt"] == 2


def test_counted_failures_use_up_the_budget_and_a_retry_annotation_renews_it() -> None:
    story = Story(make_job(retry={"maxRetries": 2}))
    attempts = 0
    story.passes()
    while "Failed" not in story.conditions():
        story.space.end(ExitCode.UNEXPECTED, None)
        attempts += 1
        story.passes()
    assert attempts == 3
    assert story.conditions()["Failed"] == ("True", "UnexpectedError")
    assert story.passes() == []
    story.annotate("retry", "again")
    assert story.to_the_end() == ALL_STEPS
    assert succeeded(story)


def test_a_restart_of_the_operator_keeps_the_retry_count() -> None:
    story = Story(make_job(retry={"maxRetries": 1}))
    story.passes()
    story.space.end(ExitCode.UNEXPECTED, None)
    story.passes()
    story.space.jobs = {n: j for n, j in story.space.jobs.items() if n.endswith("-2")}  # the first is cleaned up
    assert story.step("prepare")["retries"] == 1
    story.space.end(ExitCode.UNEXPECTED, None)
    story.passes()
    assert "Failed" in story.conditions()


def test_a_lost_report_is_read_again_by_prepare() -> None:
    story = Story(make_job())
    story.passes()
    story.succeed()
    story.passes()
    story.space.end(0, None)  # trained, but the report can't be read
    story.done.append("train")
    assert story.to_the_end() == ["prepare", "merge", "quantize-q4", "evaluate", "evaluate-q4"]
    assert story.step("train")["state"] == "Reused"


def test_another_attempt_of_several_pods_meets_where_the_last_one_did() -> None:
    story = Story(make_job(parallelism={"gpusPerNode": 0, "numNodes": 2}))
    story.passes()
    story.succeed()
    assert story.passes() == ["create Service", "job train"]
    story.space.end(ExitCode.UNEXPECTED, None)
    assert story.passes() == ["job train"]
    assert len(story.space.services) == 1
    assert {body["kind"] for body in story.created} - {*policy.reads(story.typed).kinds} == {"PersistentVolumeClaim"}


def test_what_the_pods_at_work_need_is_put_back_by_whomever_it_was_taken() -> None:
    story = Story(make_job(parallelism={"gpusPerNode": 0, "numNodes": 2}))
    story.passes()
    story.succeed()
    story.passes()
    (run,), (service,) = story.space.config_maps.values(), story.space.services.values()
    story.space.config_maps, story.space.services = {}, {}
    assert story.passes() == ["create ConfigMap", "create Service"]
    assert next(iter(story.space.config_maps.values()))["data"] == run["data"]
    selector = service["spec"]["selector"]
    story.space.services[service["metadata"]["name"]]["spec"]["selector"] = {"app": "other"}
    assert story.passes() == ["create Service"]
    assert next(iter(story.space.services.values()))["spec"]["selector"] == selector
    story.edit(suspend=True)
    story.passes()
    story.space.config_maps, story.space.services = {}, {}
    assert story.passes() == ["SuspendJob"] * 3, "nothing is at work"


def test_a_report_that_is_lost_each_time_ends_the_job_with_its_budget() -> None:
    story = Story(make_job(retry={"maxRetries": 0}))
    story.passes()
    story.succeed()
    story.passes()
    story.space.end(0, None)
    assert story.passes() == []
    assert story.conditions()["Failed"] == ("True", "ResultLost")
    assert story.step("prepare")["state"] == "Succeeded", "there is nothing that it should look for"


def test_missing_references_start_no_pod_and_the_job_goes_on_when_they_appear() -> None:
    story = Story(make_job(), space=Namespace())
    story.space.named[Ref("ConfigMap", "facts")] = None
    assert story.passes() == []
    assert story.conditions()["Stalled"] == ("True", "ConfigMapNotFound")
    assert "Failed" not in story.conditions()
    story.space.named[Ref("ConfigMap", "facts")] = data_config_map()
    assert story.passes(1) == ["create PersistentVolumeClaim", "create ConfigMap", "job prepare"]


def test_a_claim_that_is_there_already_is_not_made_again() -> None:
    story = Story(make_job())
    story.space.named[Ref("PersistentVolumeClaim", "facts-artifacts")] = {"metadata": {"name": "facts-artifacts"}}
    assert story.passes(1) == ["create ConfigMap", "job prepare"]


@pytest.mark.parametrize("attempt", [0, 1])
def test_an_attempt_that_the_status_forgot_has_not_ended_when_the_one_before_it_did(attempt: int) -> None:
    story = Story(make_job())
    story.one_pass()
    story.job["status"]["steps"][0] = {"name": "prepare", "state": "Pending", "attempt": attempt, "finishedAt": stamp(-60)}
    assert story.one_pass() == []
    found = story.step("prepare")
    assert (found["state"], found["attempt"], "finishedAt" in found) == ("Running", 1, False)


def test_suspend_stops_the_job_and_resume_goes_on() -> None:
    story = Story(make_job())
    story.passes()
    job = story.space.running()["metadata"]
    name, uid = job["name"], job["uid"]
    story.edit(suspend=True)
    assert story.decide().actions == (SuspendJob(name, uid, True),)
    assert story.one_pass() == ["SuspendJob"]
    assert story.step("prepare")["suspended"] is True
    story.space.jobs[name]["spec"]["suspend"] = True
    story.space.pods.clear()
    assert story.passes() == []
    assert story.conditions() == {"Ready": ("False", "Suspended"), "Reconciling": ("True", "Suspended")}
    story.edit(suspend=False)
    assert story.decide().actions == (SuspendJob(name, uid, False),)
    assert story.one_pass() == ["SuspendJob"]
    assert "suspended" not in story.step("prepare")


@pytest.mark.parametrize("there", [{}, {"deletionTimestamp": stamp(0)}, None], ids=["unseen", "being deleted", "never made"])
def test_a_job_that_no_watch_has_told_of_is_taken_for_ours_before_it_is_said_to_be_suspended(there: Object | None) -> None:
    story = Story(make_job())
    story.one_pass()
    name = story.space.running()["metadata"]["name"]
    body = story.space.jobs.pop(name)
    story.space.pods.clear()
    if there is not None:
        story.space.named[Ref("Job", name)] = {**body, "metadata": {**body["metadata"], **there}}
    story.edit(suspend=True)
    decision = story.decide()
    made = [a.body["metadata"]["name"] for a in decision.actions if isinstance(a, Create) and a.body["kind"] == "Job"]
    reason = next(c["reason"] for c in decision.status["conditions"] if c["type"] == "Ready")
    assert (made, reason) == (([name], "Preparing") if there == {} else ([], "Suspended"))


def test_a_lost_node_costs_an_attempt_and_no_person() -> None:
    story = Story(make_job())
    story.passes()
    story.succeed()
    story.one_pass()
    (name,) = [n for n in story.space.jobs if "train" in n]
    story.space.pods[name]["metadata"]["deletionTimestamp"] = stamp()  # its kubelet never confirms
    assert story.passes(2) == [f"delete Job {name}", "job train"]
    assert story.step("train")["attempt"] == 2
    assert story.job["status"]["lastFailure"]["reason"] == "NodeLost"


def test_a_node_whose_clock_is_ahead_makes_nobody_wait() -> None:
    story = Story(make_job())
    story.passes(2)
    story.space.end(*reported_failure(ExitCode.SOURCE_UNAVAILABLE, "SourceUnavailable", "no answer"), seconds=10**6)
    assert "job prepare" in story.passes(4)


def test_pods_that_are_taken_away_for_ever_are_replaced_a_bounded_number_of_times() -> None:
    story = Story(make_job())
    for _ in range(110):
        story.passes(3)
        story.space.jobs.clear()
        story.space.pods.clear()
    assert story.conditions()["Failed"] == ("True", "JobDeleted")
    assert story.step("prepare")["attempt"] == 100
    assert "(attempt 100: no more are made)" in story.job["status"]["lastFailure"]["message"]


def test_a_job_whose_pod_is_refused_does_not_say_that_it_runs() -> None:
    story = Story(make_job())
    story.one_pass()
    story.space.pods.clear()
    story.passes(2)
    assert story.conditions()["Reconciling"] == ("True", "PodNotCreated")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "exceeded quota: team, requested: limits.memory=8Gi, used: limits.memory=60Gi, limited: 64Gi",
            "QuotaExceeded",
        ),
        ("failed quota: team: must specify limits.cpu for: step", "QuotaExceeded"),
        ("maximum memory usage per Container is 4Gi, but limit is 8Gi", "LimitRangeExceeded"),
        ('violates PodSecurity "restricted:latest"', "FailedCreate"),
    ],
)
def test_who_refuses_a_pod_is_told_in_its_own_words(said: str, reason: str) -> None:
    story = Story(make_job())
    story.one_pass()
    story.space.pods.clear()
    job = story.step("prepare")["job"]
    story.space.named[Ref("PodRefusal", job)] = {"note": f'Error creating: pods "{job}-x" is forbidden: {said}'}
    story.passes(2)
    assert story.conditions()["Reconciling"] == ("True", reason)
    (shown,) = (c["message"] for c in story.job["status"]["conditions"] if c["type"] == "Reconciling")
    assert said in shown


def test_a_suspended_new_job_starts_nothing() -> None:
    story = Story(make_job(suspend=True))
    assert story.passes() == []
    assert story.conditions()["Ready"] == ("False", "Suspended")


def test_a_failed_gate_publishes_and_serves_nothing() -> None:
    publish = [{"uri": "pvc://shelf/models"}]
    shelf = {"kind": "PersistentVolumeClaim", "metadata": {"name": "shelf"}}
    space = Namespace(data_config_map())
    space.named[Ref("PersistentVolumeClaim", "shelf")] = shelf
    story = Story(make_job(publish=publish, serving=SERVING), space=space, loss=4.5)
    assert story.to_the_end() == ALL_STEPS
    assert story.conditions()["Failed"] == ("True", "GateFailed")
    story.edit(evaluation={"gates": [{"name": "any", "metric": "loss", "max": 5.0}]})
    assert story.to_the_end() == ["publish-0"]
    assert story.job["status"]["published"] == ["pvc://shelf/models/merged"]


def drive_to_serving(story: Story, **condition: str) -> Object:
    """All steps end well, the ModelServe is applied, and its controller reports this condition."""
    story.to_the_end()
    wanted = apply_of(story)
    status = {
        "observedGeneration": 1,
        "url": "http://facts.default.svc/v1",
        "conditions": [{"type": "Ready", "status": "True", "reason": "Live", **condition}],
    }
    served = {**wanted, "metadata": {**wanted["metadata"], "generation": 1}, "status": status}
    story.space.named[Ref("ModelServe", "facts")] = served
    return served


def apply_of(story: Story) -> Object:
    (action,) = story.decide().actions
    assert isinstance(action, Apply)
    return action.body


def test_a_gate_that_the_rows_can_not_answer_stops_the_job_before_training_and_an_edit_lets_it_go_on() -> None:
    story = Story(make_job(evaluation={"gates": [{"name": "g", "metric": "accuracy", "min": 0.5}]}))
    story.passes()
    story.succeed()
    assert story.passes() == []
    assert story.conditions()["Stalled"] == ("True", "InvalidSpec")
    (why,) = (c["message"] for c in story.job["status"]["conditions"] if c["type"] == "Stalled")
    assert why.startswith(
        "spec.evaluation.gates[] g: the rows are PromptCompletion, and accuracy is for rows of format Classif"
    )
    story.edit(evaluation={"gates": [{"name": "g", "metric": "exactMatch", "min": 0.5}]})
    assert "job train" in story.passes()


def test_the_job_has_ended_when_the_model_serve_is_ready_with_its_artifact() -> None:
    story = Story(make_job(serving=SERVING))
    served = drive_to_serving(story)
    assert story.conditions()["Reconciling"] == ("True", "Serving")
    assert served["spec"]["model"]["uri"] == next(a["uri"] for a in story.job["status"]["artifacts"] if a["name"] == "q4")
    assert "ownerReferences" not in served["metadata"]  # it outlives the job
    assert story.passes() == []
    assert succeeded(story)
    assert story.job["status"]["serving"]["url"] == "http://facts.default.svc/v1"
    assert story.job["status"]["serving"]["ready"] is True


def evaluation(story: Story, name: str) -> str | None:
    found = next(a for a in story.job["status"]["artifacts"] if a["name"] == name).get("evaluation")
    return None if found is None else str(found)


def test_the_model_serve_is_told_where_the_artifacts_evaluation_lies() -> None:
    gate = {"testRows": {"minEqual": 0.75}}
    story = Story(make_job(serving={"template": {**SERVING["template"], "rollout": {"gate": gate}}}))
    served = drive_to_serving(story)
    asked = story.result("evaluate-q4").scores[0].answers
    assert evaluation(story, "q4") == f"pvc://facts-artifacts/facts/evaluate/{asked}"
    assert served["spec"]["model"]["evaluation"] == evaluation(story, "q4")
    assert served["spec"]["rollout"]["gate"] == gate
    assert evaluation(story, "merged") != evaluation(story, "q4")
    assert evaluation(story, "adapter") is None


def test_a_retrain_moves_the_evaluation_along() -> None:
    story = Story(make_job(serving=SERVING))
    before = drive_to_serving(story)["spec"]["model"]
    story.passes()
    story.edit(training={**story.job["spec"].get("training", {}), "seed": 7})
    story.to_the_end()
    after = apply_of(story)["spec"]["model"]
    assert after["evaluation"] == evaluation(story, "q4")
    assert after["evaluation"] != before["evaluation"]


def test_rows_without_answers_leave_the_model_serve_without_an_evaluation() -> None:
    story = Story(make_job(serving=SERVING))
    story.passes()
    for step in ALL_STEPS:
        result = story.result(step)
        scores = tuple(s.model_copy(update={"answers": None}) for s in result.scores)
        story.succeed_with(result.model_copy(update={"scores": scores}))
        story.passes(2)
        if not any(not j["status"].get("conditions") for j in story.space.jobs.values()):
            break
    assert "evaluation" not in apply_of(story)["spec"]["model"]


def test_a_job_that_is_applied_again_knows_the_model_serve_of_the_one_before() -> None:
    first = Story(make_job(serving=SERVING))
    drive_to_serving(first)
    first.passes()
    again = Story(make_job(serving=SERVING), done=first.done)
    again.space.named = first.space.named
    assert again.to_the_end() == ["prepare"]
    assert again.job["status"]["serving"] == first.job["status"]["serving"]
    assert again.job["status"]["serving"]["ready"] is True


def test_numbers_in_the_status_are_short() -> None:
    story = Story(make_job(), loss=0.00267876543)
    story.to_the_end()
    assert story.job["status"]["scores"][-1]["values"]["loss"] == 0.00267877


def test_a_refused_model_stalls_the_job_until_it_is_served_after_all() -> None:
    story = Story(make_job(serving=SERVING))
    served = drive_to_serving(story, type="Stalled", reason="GateFailed", message="no answer to prompt 1")
    story.passes()
    assert story.conditions()["Stalled"] == ("True", "ServingRefused")
    served["status"]["conditions"][0]["type"] = "Ready"
    story.passes()
    assert succeeded(story)


def test_a_model_serve_that_has_another_revision_pinned_does_not_serve_the_job() -> None:
    story = Story(make_job(serving=SERVING))
    served = drive_to_serving(story, reason="Pinned", message="revision a serves, as the annotation finetune.dev/pin says")
    served["status"]["live"] = {"modelDigest": "sha256:" + "b" * 64}
    story.passes()
    assert story.conditions()["Stalled"] == ("True", "ServingRefused")
    served["status"]["live"] = {"modelDigest": served["spec"]["model"]["digest"]}
    story.passes()
    assert succeeded(story)


def test_two_jobs_do_not_fight_over_one_model_serve() -> None:
    story = Story(make_job(serving=SERVING))
    served = drive_to_serving(story, type="Reconciling")
    story.passes()
    served["metadata"]["labels"]["finetune.dev/job"] = "another"
    served["spec"]["model"]["digest"] = "sha256:" + "b" * 64
    assert story.passes() == []
    assert succeeded(story)
    assert story.job["status"]["serving"]["ready"] is False


def test_an_upgrade_whose_defaults_differ_disturbs_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(make_job())
    story.to_the_end()
    monkeypatch.setattr("finetune_trainer.contract.training.EPOCHS", 5.0)
    assert story.passes() == []
    assert succeeded(story)


@pytest.mark.parametrize(
    ("edit", "again"), [({"training": {"seed": 7}}, True), ({"retry": {"maxRetries": 9}}, False), ({}, False)]
)
def test_a_run_of_a_release_that_kept_no_spec_is_told_by_its_digest(edit: dict[str, Any], again: bool) -> None:
    story = Story(make_job())
    story.to_the_end()
    del story.job["status"]["runSpec"]
    if edit:
        story.edit(**edit)
    assert bool(story.passes()) is again


def test_every_step_of_the_pipeline_has_a_record() -> None:
    story = Story(make_job())
    story.one_pass()
    assert [s["name"] for s in story.job["status"]["steps"]] == [s.name for s in steps(story.run())]
