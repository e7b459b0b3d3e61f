"""Adapters over a served base model: each is tried by itself, the one before goes on, and no pod is started for them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.serving import SETTINGS, Stage, make_finished_job, make_serve

from finetune_operator.api.adapters import MOST_ADAPTERS
from finetune_operator.api.modelserve import ModelServe, ModelServeSpec
from finetune_operator.api.rules.modelserve import broken_by
from finetune_operator.cache import Own
from finetune_operator.conditions import LONGEST_MESSAGE
from finetune_operator.decision import NotePod, Observed, pause_after
from finetune_operator.meta import Key, Object
from finetune_operator.modelserve import adapters
from finetune_operator.modelserve.observed import World
from finetune_operator.names import ANNOTATION_RETRY, ANNOTATION_TOLD
from finetune_trainer.contract.reports import Failure
from finetune_trainer.contract.served_adapters import Awaited, WantedAdapters, engine_name, rank_for
from finetune_trainer.contract.served_rows import ServedRows

ON_VLLM: dict[str, Any] = {
    "model": {"uri": "pvc://models/base", "digest": "sha256:" + "a" * 64},
    "engine": {"type": "VLLM"},
    "lora": {"claims": ["tickets-artifacts"]},
    "rollout": {"rollbackWindowSeconds": 0},
}
TICKETS = {"name": "tickets", "jobRef": {"name": "tickets"}}
LEGAL = {"name": "legal", "uri": "pvc://models/legal", "digest": "sha256:" + "c" * 64}
WRONG = Failure(reason="GateFailed", message="1 of 1 prompts were not answered")


def trained(digest: str = "b", **training: Any) -> Object:
    """A FineTuneJob that has made an adapter, whose merged model was scored."""
    job = make_finished_job("tickets")
    evaluation = "pvc://tickets-artifacts/evaluate/" + "e" * 20
    artifact = {"name": "adapter", "format": "PEFT", "uri": f"pvc://tickets-artifacts/train/{digest}", "bytes": 10**6}
    merged = {**job["status"]["artifacts"][0], "evaluation": evaluation}
    job["status"]["artifacts"] = [{**artifact, "digest": f"sha256:{digest * 64}"}, merged]
    job["spec"] = {"training": {"method": "LoRA", **training}}
    return job


@pytest.fixture
def stage() -> Stage:
    """A base model that serves, with room for adapters and none yet."""
    made = Stage(make_serve(**ON_VLLM))
    for claim in ("tickets-artifacts",):
        made.put({"kind": "PersistentVolumeClaim", "metadata": {"name": claim}})
    made.put(trained())
    made.roll_out()
    return made


def told(stage: Stage, name: str = "tickets") -> Object:
    return next(a for a in stage.serve["status"]["adapters"] if a["name"] == name)


def wanted(stage: Stage) -> dict[str, bool]:
    """What pods are to have loaded, by the engine's name, and whether its name leads to it."""
    found = WantedAdapters.model_validate_json(stage.objects["ConfigMap", "facts-adapters"]["data"]["wanted.json"])
    return {adapter.engine_name: adapter.serves for adapter in found.adapters}


def asked(stage: Stage) -> list[str]:
    """The names under which gates ask that run now."""
    jobs = [j for j in stage.of("Job") if not j.get("status") and "finetune.dev/adapter" in j["metadata"]["labels"]]
    commands = [j["spec"]["template"]["spec"]["containers"][0]["command"] for j in jobs]
    return sorted(command[command.index("--model") + 1] for command in commands)


def passes(stage: Stage, **numbers: Any) -> None:
    """Have what is asked for tried, and its gate passed."""
    stage.step()
    stage.finish_gate(**numbers)
    is_told(stage)


def is_told(stage: Stage) -> None:
    """Every pod says that the name leads to what has passed."""
    stage.step()
    for job in stage.of("Job"):
        if not job.get("status"):
            job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    stage.settle()


def at(digest: str, name: str = "tickets") -> str:
    return engine_name(name, f"sha256:{digest * 64}")


def test_an_adapter_is_tried_beside_the_model_and_then_its_name_leads_to_it(stage: Stage) -> None:
    live = stage.live()
    stage.edit(adapters=[TICKETS])
    stage.step()
    assert (told(stage)["state"], wanted(stage), asked(stage)) == ("Gating", {at("b"): False}, [at("b")])
    assert stage.conditions()["AdaptersReady"] == ("False", "AdaptersOnTheirWay")
    stage.finish_gate(served_rows=ServedRows(asked=8, same_token_ids=8, same_answers=7))
    stage.step()
    assert (told(stage)["state"], wanted(stage)) == ("Promoting", {at("b"): True})
    assert stage.conditions()["AdaptersReady"] == ("False", "AdaptersOnTheirWay")
    is_told(stage)
    assert (told(stage)["state"], told(stage)["live"]["digest"], wanted(stage)) == (
        "Live",
        "sha256:" + "b" * 64,
        {at("b"): True},
    )
    assert told(stage)["testRows"]["sameAnswers"] == 7
    assert stage.conditions()["AdaptersReady"] == ("True", "AdaptersLive")
    assert (stage.live(), stage.revisions(), asked(stage)) == (live, {live}, [])


def test_the_gate_asks_the_rows_of_the_job_that_trained_it(stage: Stage) -> None:
    stage.edit(adapters=[TICKETS, LEGAL])
    stage.step()
    pods = [job["spec"]["template"]["spec"] for job in stage.of("Job") if not job.get("status")]
    rows = [pod["containers"][0]["command"] for pod in pods if "--rows" in pod["containers"][0]["command"]]
    assert [command[command.index("--rows") + 1] for command in rows] == ["pvc://tickets-artifacts/evaluate/" + "e" * 20]


def test_the_next_one_is_tried_while_the_one_before_serves(stage: Stage) -> None:
    stage.edit(adapters=[TICKETS])
    passes(stage)
    stage.put(trained("d"))
    stage.step()
    assert wanted(stage) == {at("b"): True, at("d"): False}
    stage.finish_gate(WRONG)
    stage.settle()
    assert (told(stage)["state"], told(stage)["reason"], told(stage)["live"]["digest"][7]) == ("Refused", "GateFailed", "b")
    assert wanted(stage) == {at("b"): True}
    stage.later(3600)
    assert not stage.settle().actions
    assert asked(stage) == []


def test_a_status_has_room_for_what_is_said_of_each(stage: Stage) -> None:
    stage.edit(adapters=[LEGAL])
    stage.step()
    stage.finish_gate(Failure(reason="GateFailed", message="x" * 10_000))
    stage.settle()
    assert told(stage, "legal")["message"] == "x" * LONGEST_MESSAGE


def test_a_bad_one_is_refused_alone(stage: Stage) -> None:
    stage.edit(adapters=[TICKETS, LEGAL])
    stage.step()
    (bad,) = [j for j in stage.of("Job") if j["metadata"]["labels"].get("finetune.dev/adapter") == "legal"]
    for job in stage.of("Job"):
        if job is not bad and not job.get("status"):
            job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    stage.finish_gate(WRONG)
    stage.step()
    for job in stage.of("Job"):
        if not job.get("status"):
            job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    decision = stage.step()
    assert (told(stage)["state"], told(stage, "legal")["state"]) == ("Live", "Refused")
    found = stage.conditions()
    assert (found["Ready"][0], found["Available"][0]) == ("True", "True") or found["Available"] == ("False", "NoPods")
    assert found["AdaptersReady"] == ("False", "GateFailed")
    assert {e.reason for e in decision.events} == {"AdapterLive"}


def test_what_was_refused_is_tried_again_when_somebody_says_so(stage: Stage) -> None:
    stage.edit(adapters=[LEGAL])
    stage.step()
    stage.finish_gate(WRONG)
    assert [(e.reason, e.warning) for e in stage.step().events] == [("AdapterNotServed", True)]
    stage.settle()
    assert asked(stage) == []
    stage.annotate(ANNOTATION_RETRY, "1")
    stage.step()
    assert asked(stage) == [at("c", "legal")]
    passes(stage)
    assert told(stage, "legal")["state"] == "Live"


def test_what_was_refused_stays_so_where_the_same_files_are_moved(stage: Stage) -> None:
    stage.edit(adapters=[LEGAL])
    stage.step()
    stage.finish_gate(WRONG)
    stage.settle()
    stage.edit(adapters=[LEGAL | {"uri": "pvc://models/moved"}])
    stage.settle()
    assert (told(stage, "legal")["state"], told(stage, "legal")["uri"], asked(stage)) == ("Refused", "pvc://models/moved", [])


def test_an_adapter_in_the_models_own_bucket_is_reached() -> None:
    in_bucket = {"uri": "s3://bucket/base", "digest": "sha256:" + "a" * 64, "secretRef": {"name": "s3-keys"}}
    stage = Stage(make_serve(**{**ON_VLLM, "model": in_bucket, "lora": {}}))
    stage.put({"kind": "Secret", "metadata": {"name": "s3-keys"}})
    stage.roll_out()
    stage.edit(adapters=[LEGAL | {"uri": "s3://bucket/legal"}, {**LEGAL, "name": "far", "uri": "s3://elsewhere/legal"}])
    stage.step()
    assert (told(stage, "legal")["state"], told(stage, "far")["reason"]) == ("Gating", "AdapterOutOfReach")


def test_the_keeper_reads_a_bucket_as_the_loader_does() -> None:
    in_bucket = {"uri": "s3://bucket/base", "endpoint": "https://minio.local", "region": "eu-1", "caSecretRef": {"name": "ca"}}
    stage = Stage(make_serve(**{**ON_VLLM, "model": in_bucket, "lora": {}}))
    stage.put({"kind": "Secret", "metadata": {"name": "ca"}})
    stage.roll_out()
    loader, keeper = pod_of(stage)["initContainers"][0], pod_of(stage)["containers"][-1]
    for container in (loader, keeper):
        command = container["command"]
        assert [command[command.index(f"--{option}") + 1] for option in ("endpoint", "region")] == [
            "https://minio.local",
            "eu-1",
        ]
    assert keeper["env"][: len(loader["env"])] == loader["env"]
    assert {"name": "HOME", "value": "/tmp"} in keeper["env"]
    assert len(loader["env"]) > 1, "where the authority's certificate lies"


def test_a_gate_that_was_lost_is_no_verdict(stage: Stage) -> None:
    stage.edit(adapters=[LEGAL])
    stage.step()
    stage.lose_gate(Failure(reason="AdapterNotLoaded", message="1 of 2 pods have not loaded it"), "BackoffLimitExceeded")
    decision = stage.step()
    assert (told(stage, "legal")["state"], told(stage, "legal")["reason"]) == ("Gating", "AdapterNotLoaded")
    assert decision.requeue_after is not None
    stage.later(60)
    stage.step()
    assert asked(stage) == [at("c", "legal")]
    passes(stage)
    assert told(stage, "legal")["state"] == "Live"


def test_each_state_says_why_until_it_serves(stage: Stage) -> None:
    stage.edit(adapters=[TICKETS])
    stage.step()
    found = told(stage)
    assert (found["reason"], found["message"]) == ("Gating", "pods load it, and it is asked what its gate says")
    stage.finish_gate()
    stage.step()
    found = told(stage)
    assert (found["reason"], found["message"]) == (
        "AdapterPromoting", "it has passed its gate, and pods are told to lead its name to it",
    )  # fmt: skip
    stage.step()
    assert (told(stage)["reason"], len(asked(stage))) == ("AdapterPromoting", 1), "the Job that asks pods for it runs"
    is_told(stage)
    found = told(stage)
    assert "reason" not in found
    assert "message" not in found
    live = {k: found[k] for k in ("digest", "uri", "trial")} | {"revision": stage.live(), "told": True}
    assert {k: v for k, v in found["live"].items() if k != "since"} == live


def test_a_gate_that_is_lost_is_asked_again_after_a_pause_and_counted(stage: Stage) -> None:
    stage.edit(adapters=[LEGAL])
    stage.step()
    gone = Failure(reason="AdapterNotLoaded", message="1 of 2 pods have not loaded it")
    for lost in (0, 1):
        stage.lose_gate(gone, "BackoffLimitExceeded")
        assert stage.step().requeue_after == pause_after(lost + 1)
        assert told(stage, "legal")["message"] == f"it could not be asked, and will be asked again: {gone.message}"
        assert (told(stage, "legal").get("gatesLost", 0), asked(stage)) == (lost, [])
        stage.later(pause_after(lost + 1) - 1)
        assert (stage.step().requeue_after, asked(stage)) == (1, [])
        stage.later(1)
        stage.step()
        assert (told(stage, "legal")["gatesLost"], asked(stage)) == (lost + 1, [at("c", "legal")])
        (running,) = [job["metadata"]["name"] for job in stage.of("Job") if not job.get("status")]
        assert running.endswith(f"-{lost + 1}")
    passes(stage)
    assert "gatesLost" not in told(stage, "legal")


def test_pods_that_can_not_be_asked_whether_they_serve_it_are_asked_again(stage: Stage) -> None:
    stage.edit(adapters=[LEGAL])
    stage.step()
    stage.finish_gate()
    stage.step()
    stage.lose_gate(Failure(reason="AdapterNotLoaded", message="1 of 2 pods do not serve it"), "BackoffLimitExceeded")
    assert stage.step().requeue_after == pause_after(1)
    assert (told(stage, "legal")["state"], told(stage, "legal")["reason"]) == ("Promoting", "AdapterNotLoaded")
    stage.later(pause_after(1))
    stage.step()
    assert (told(stage, "legal")["state"], asked(stage)) == ("Promoting", [at("c", "legal")])
    is_told(stage)
    assert told(stage, "legal")["state"] == "Live"


def test_a_name_that_is_taken_out_leads_nowhere_and_the_others_stay(stage: Stage) -> None:
    stage.edit(adapters=[TICKETS, LEGAL])
    stage.step()
    is_told(stage)
    is_told(stage)
    assert wanted(stage) == {at("b"): True, at("c", "legal"): True}
    stage.edit(adapters=[LEGAL])
    stage.settle()
    assert wanted(stage) == {at("c", "legal"): True}


def test_the_jobs_of_an_adapter_go_with_it(stage: Stage) -> None:
    stage.edit(adapters=[TICKETS])
    passes(stage)
    others = [job["metadata"]["name"] for job in stage.of("Job") if "finetune.dev/adapter" not in job["metadata"]["labels"]]
    stage.edit(adapters=[])
    stage.settle()
    assert [job["metadata"]["name"] for job in stage.of("Job")] == others


def test_what_serves_goes_on_where_the_same_files_are_moved(stage: Stage) -> None:
    stage.edit(adapters=[LEGAL])
    passes(stage)
    stage.edit(adapters=[LEGAL | {"uri": "pvc://models/moved"}])
    stage.settle()
    assert (told(stage, "legal")["state"], told(stage, "legal")["live"]["uri"]) == ("Live", "pvc://models/moved")


def test_a_status_that_was_lost_loses_no_adapter(stage: Stage) -> None:
    stage.edit(adapters=[TICKETS])
    passes(stage)
    stage.serve["status"] = {"observedGeneration": -1}
    stage.settle()
    assert (told(stage)["state"], wanted(stage), asked(stage)) == ("Live", {at("b"): True}, [])


def test_a_config_map_that_was_deleted_is_made_anew_from_the_status(stage: Stage) -> None:
    stage.edit(adapters=[TICKETS])
    passes(stage)
    del stage.objects["ConfigMap", "facts-adapters"]
    stage.settle()
    assert (told(stage)["state"], wanted(stage)) == ("Live", {at("b"): True})


@pytest.mark.parametrize("change", [{"name": "others"}, {"ownerReferences": [{"uid": "another-serve"}]}])
def test_what_has_passed_is_read_in_the_map_of_this_serve_alone(stage: Stage, change: Object) -> None:
    stage.edit(adapters=[TICKETS])
    passes(stage)
    found = stage.objects["ConfigMap", "facts-adapters"]
    notes = {"finetune.dev/adapters": "{}"}
    other = {**found, "metadata": {**found["metadata"], "annotations": notes, **change}}
    observed = Observed({"ConfigMap": (other,)}, {})
    serve = ModelServe.model_validate(stage.serve)
    (step,) = adapters.next_steps(serve, None, None, World(), observed, stage.now)
    assert step.status.live is not None


def test_what_somebody_wrote_into_the_config_map_is_put_back(stage: Stage) -> None:
    stage.edit(adapters=[TICKETS])
    passes(stage)
    stage.objects["ConfigMap", "facts-adapters"]["data"]["wanted.json"] = json.dumps({"version": "x", "adapters": []})
    stage.step()
    assert wanted(stage) == {at("b"): True}


def test_in_another_revision_each_is_tried_again_and_goes_on_meanwhile(stage: Stage) -> None:
    stage.edit(adapters=[TICKETS])
    passes(stage)
    stage.edit(model={"uri": "pvc://models/base", "digest": "sha256:" + "f" * 64})
    stage.roll_out_canary()
    assert (told(stage)["state"], wanted(stage), asked(stage)) == ("Gating", {at("b"): True}, [at("b")])
    stage.finish_gate(WRONG)
    stage.settle()
    assert (told(stage)["state"], "live" in told(stage), wanted(stage)) == ("Refused", False, {})


@pytest.mark.parametrize(
    ("adapter", "job", "reason", "said"),
    [
        ({**LEGAL, "name": "facts"}, None, "NameTaken", "facts is the name of the base model"),
        ({**LEGAL, "uri": "pvc://elsewhere/a"}, None, "AdapterOutOfReach", "add its claim"),
        ({**LEGAL, "uri": "s3://bucket/a"}, None, "AdapterOutOfReach", "which pods don't reach"),
        (TICKETS, trained(lora={"rank": 64}), "AdapterUnsupported", "its rank is 64, and there is room for 16"),
        (TICKETS, trained(lora={"rank": 16, "init": "PiSSA"}), "AdapterUnsupported", "its rank is 32"),
        (TICKETS, trained(lora={"dora": True}), "AdapterUnsupported", "DoRA"),
        (TICKETS, trained(lora={"modulesToSave": ["lm_head"]}), "AdapterUnsupported", "trained whole (lm_head)"),
        (TICKETS, make_finished_job("tickets"), "ArtifactNotFound", "trains every weight"),
        ({"name": "a", "jobRef": {"name": "nobody"}}, None, "JobNotFound", "there is no FineTuneJob nobody"),
    ],
)
def test_what_can_be_known_is_refused_before_a_pod_is_told(
    stage: Stage, adapter: Object, job: Object | None, reason: str, said: str
) -> None:
    if job is not None:
        stage.put(job)
    stage.edit(adapters=[adapter])
    stage.settle()
    found = told(stage, adapter["name"])
    assert (found["state"], found["reason"]) == ("Refused", reason)
    assert said in found["message"]
    assert (wanted(stage), asked(stage)) == ({}, [])


@pytest.mark.parametrize("kind", ["Failed", "Stalled"])
def test_a_job_that_came_to_nothing_is_told_in_its_own_words(stage: Stage, kind: str) -> None:
    job = trained()
    ended = {"type": kind, "status": "True", "reason": "DoesNotFit", "message": "take QLoRA"}
    job["status"] = {"conditions": [{**ended, "lastTransitionTime": stage.stamp()}]}
    stage.put(job)
    stage.edit(adapters=[TICKETS])
    stage.settle()
    found = told(stage)
    assert (found["state"], found["reason"]) == ("Refused", "JobFailed")
    assert found["message"] == "the FineTuneJob tickets made no adapter, DoesNotFit: take QLoRA"


def test_a_job_that_still_trains_is_waited_for(stage: Stage) -> None:
    job = trained()
    job["status"] = {"conditions": [], "stage": "Training"}
    stage.put(job)
    stage.edit(adapters=[TICKETS])
    stage.settle()
    assert (told(stage)["state"], told(stage)["reason"]) == ("Waiting", "WaitingForJob")


def test_a_gate_without_test_rows_asks_none_of_the_evaluation(stage: Stage) -> None:
    stage.edit(adapters=[{**TICKETS, "gate": {"testRows": {"count": 0}}}])
    stage.step()
    (job,) = [j for j in stage.of("Job") if not j.get("status")]
    pod = job["spec"]["template"]["spec"]
    assert "--rows" not in pod["containers"][0]["command"]
    assert [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume] == []


def test_an_adapter_is_followed_though_the_model_can_not_be(stage: Stage) -> None:
    stage.edit(adapters=[LEGAL], model={"jobRef": {"name": "nobody"}})
    stage.step()
    assert stage.conditions()["Stalled"] == ("True", "JobNotFound")
    assert "reason" not in told(stage, "legal") or told(stage, "legal")["reason"] != "AdapterOutOfReach"


def test_an_adapter_waits_for_a_revision_with_room() -> None:
    stage = Stage(make_serve(**{k: v for k, v in ON_VLLM.items() if k != "lora"}))
    stage.roll_out()
    stage.edit(lora={}, adapters=[LEGAL])
    stage.step()
    assert (told(stage, "legal")["state"], told(stage, "legal")["reason"]) == ("Waiting", "NothingLive")
    assert told(stage, "legal")["message"] == "no revision serves yet that has room for adapters"
    stage.available(stage.candidate())
    stage.step()
    assert asked(stage) == []


# ── Kubelets are told ─────────────────────────────────────────────────────────────────────────────────────────────────


def told_of(stage: Stage, pod: str | None = None) -> str:
    """The list that a pod's kubelet was told of."""
    found = stage.objects["Pod", pod or f"pod-{stage.live()}"]["metadata"]
    return str(found["annotations"].get(ANNOTATION_TOLD, "none"))


def version(stage: Stage) -> str:
    return WantedAdapters.model_validate_json(stage.objects["ConfigMap", "facts-adapters"]["data"]["wanted.json"]).version


def test_a_pod_is_annotated_whenever_the_list_has_changed_and_only_then(stage: Stage) -> None:
    stage.engine(str(stage.live()))
    stage.settle()
    seen = [told_of(stage)]
    stage.edit(adapters=[TICKETS])
    done = stage.step().actions
    kinds = [type(action).__name__ for action in done]
    assert kinds.index("NotePod") == 1, "after the ConfigMap, before the gate that waits for what pods read"
    seen.append(told_of(stage))
    assert not any(isinstance(action, NotePod) for action in stage.step().actions)
    stage.finish_gate()
    stage.step()
    seen.append(told_of(stage))
    assert seen[-1] == version(stage)
    assert len(set(seen)) == 3, "none, tried, and serving"
    is_told(stage)
    assert (told(stage)["state"], told_of(stage)) == ("Live", seen[-1])


def test_pods_that_end_and_pods_without_a_keeper_are_left_alone(stage: Stage) -> None:
    live = str(stage.live())
    stage.engine(live)
    pod = stage.objects["Pod", f"pod-{live}"]
    others: dict[str, Object] = {
        "ending": {"metadata": {"deletionTimestamp": stage.stamp()}},
        "over": {"status": {"phase": "Failed"}},
        "asking": {"spec": {"containers": [{"name": "ask"}]}},
        "beginning": {"status": {"phase": "Pending"}},
    }
    for name, change in others.items():
        meta = {**pod["metadata"], "name": name, "uid": f"uid-{name}", **change.get("metadata", {})}
        stage.put({**pod, **change, "metadata": meta})
    stage.settle()
    stage.edit(adapters=[TICKETS])
    notes = [action.name for action in stage.step().actions if isinstance(action, NotePod)]
    assert notes == [f"pod-{live}", "beginning"]


# ── Pods that come later ──────────────────────────────────────────────────────────────────────────────────────────────


GONE = Failure(reason="AdapterNotLoaded", message="1 of 1 pods have not loaded it after 15 s: the store does not answer")


@pytest.fixture
def told_once(stage: Stage) -> Stage:
    """The adapter is Live in the one pod that there is."""
    stage.engine(str(stage.live()))
    stage.edit(adapters=[TICKETS])
    passes(stage)
    assert told(stage)["state"] == "Live"
    stage.later(60)
    return stage


def restarted(stage: Stage) -> None:
    """The pod's engine ended, and it is ready again."""
    stage.later(1)
    stage.engine(str(stage.live()))


def awaited(stage: Stage) -> Awaited:
    """What the Job that asks now waits for."""
    (job,) = [j for j in stage.of("Job") if not j.get("status")]
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    return Awaited.model_validate_json(command[command.index("--awaited") + 1])


def test_a_pod_that_became_ready_later_is_asked_as_well(told_once: Stage) -> None:
    stage = told_once
    assert not stage.settle().actions, "nobody is asked twice"
    restarted(stage)
    stage.step()
    assert (told(stage)["state"], asked(stage)) == ("Live", [at("b")]), "it said nothing yet"
    found = awaited(stage)
    assert (found.serves, found.trial, found.pods) == (True, told(stage)["live"]["trial"], 1)
    assert found.seconds < 60, "it was told when it started"
    stage.finish_gate()
    stage.settle()
    assert (told(stage)["state"], told(stage)["live"]["toldSince"], asked(stage)) == ("Live", stage.stamp(), [])
    assert not [j for j in stage.of("Job") if "finetune.dev/adapter" in j["metadata"]["labels"]]


def test_as_many_are_waited_for_as_are_ready(told_once: Stage) -> None:
    restarted(told_once)
    told_once.deployment(str(told_once.live()))["status"]["readyReplicas"] = 3
    told_once.step()
    assert awaited(told_once).pods == 3


@pytest.mark.parametrize("is_refused", [True, False])
def test_one_that_a_pod_lacks_is_degraded_until_it_has_it(told_once: Stage, is_refused: bool) -> None:
    stage = told_once
    restarted(stage)
    stage.step()
    if is_refused:
        stage.finish_gate(Failure(reason="ModelDamaged", message="its files were changed"))
    else:
        stage.lose_gate(GONE, "BackoffLimitExceeded")
    decision = stage.step()
    assert [(e.reason, e.warning) for e in decision.events] == [("AdapterDegraded", True)]
    assert (told(stage)["state"], told(stage)["reason"]) == ("Degraded", "ModelDamaged" if is_refused else "AdapterNotLoaded")
    said = "a pod does not lead its name to it" if is_refused else "it could not be asked"
    assert told(stage)["message"].startswith(f"{said}, and will be asked again: ")
    assert stage.conditions()["AdaptersReady"] == ("False", "AdapterDegraded")
    assert (stage.conditions()["Available"][0], wanted(stage)) == ("True", {at("b"): True}), "it goes on where it is"
    stage.later(pause_after(1))
    stage.step()
    assert (told(stage)["state"], asked(stage)) == ("Degraded", [at("b")])
    stage.finish_gate()
    assert [e.reason for e in stage.step().events] == ["AdapterLive"]
    assert (told(stage)["state"], "gatesLost" in told(stage), "message" in told(stage)) == ("Live", False, False)
    assert stage.conditions()["AdaptersReady"] == ("True", "AdaptersLive")


def test_where_no_pod_is_ready_no_adapter_answers(told_once: Stage) -> None:
    stage = told_once
    stage.engine(str(stage.live()), ready=False)
    stage.available(str(stage.live()), 0)
    stage.settle()
    assert (told(stage)["state"], told(stage)["reason"], asked(stage)) == ("Degraded", "NoPods", [])
    stage.available(str(stage.live()))
    restarted(stage)
    stage.step()
    assert (told(stage)["state"], asked(stage)) == ("Degraded", [at("b")]), "until the pod has said so"
    is_told(stage)
    assert told(stage)["state"] == "Live"


def test_fewer_pods_are_no_news_of_adapters(told_once: Stage) -> None:
    stage = told_once
    del stage.objects["Pod", f"pod-{stage.live()}"]
    assert not stage.settle().actions
    stage.edit(suspend=True)
    stage.settle()
    assert (told(stage)["state"], asked(stage)) == ("Live", []), "nobody waits for pods"


def test_pods_are_asked_with_what_the_adapter_has_passed(told_once: Stage) -> None:
    stage = told_once
    trial = told(stage)["live"]["trial"]
    stage.edit(adapters=[TICKETS | {"gate": {"maxTokens": 9}}])
    stage.settle()
    restarted(stage)
    stage.step()
    assert told(stage)["trial"] != trial
    assert awaited(stage).trial == trial, "as pods are told"


def test_what_an_earlier_release_was_told_is_asked_once_more(told_once: Stage) -> None:
    stage = told_once
    record = stage.objects["ConfigMap", "facts-adapters"]["metadata"]["annotations"]
    live = json.loads(record["finetune.dev/adapters"])
    del live["tickets"]["toldSince"]
    record["finetune.dev/adapters"] = json.dumps(live)
    stage.step()
    assert (told(stage)["state"], asked(stage)) == ("Live", [at("b")])


# ── The pod ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def pod_of(stage: Stage) -> Object:
    found: Object = stage.deployment(str(stage.live()))["spec"]["template"]["spec"]
    return found


def test_the_engines_api_for_adapters_is_on_the_loopback_alone(stage: Stage) -> None:
    engine, front, keeper = pod_of(stage)["containers"]
    assert engine["args"][engine["args"].index("--host") + 1] == "127.0.0.1"
    assert {e["name"]: e["value"] for e in engine["env"]}["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert all("exec" in engine[probe] for probe in ("startupProbe", "livenessProbe"))
    assert ("readinessProbe" in engine, front["readinessProbe"]["httpGet"]["path"]) == (False, "/health")
    assert [port["name"] for port in front["ports"]] == ["http"]
    assert "ports" not in keeper


def test_the_keeper_alone_writes_where_adapters_lie(stage: Stage) -> None:
    mounts = {c["name"]: {m["name"]: m for m in c["volumeMounts"]} for c in pod_of(stage)["containers"]}
    assert mounts["engine"]["adapters"]["readOnly"]
    assert mounts["front"]["adapters"]["readOnly"]
    assert "readOnly" not in mounts["adapters"]["adapters"]
    claims = [m for m in mounts["adapters"].values() if m["mountPath"].startswith("/mnt/finetune/claims/")]
    assert sorted(m["mountPath"] for m in claims) == ["/mnt/finetune/claims/models", "/mnt/finetune/claims/tickets-artifacts"]
    assert all(m["readOnly"] for m in claims)
    assert not any("tickets" in str(m) for m in mounts["engine"].values())


def test_adapters_are_no_part_of_a_revision_and_room_is() -> None:
    def revision(**spec: Any) -> str:
        stage = Stage(make_serve(**{**ON_VLLM, **spec}))
        stage.put({"kind": "PersistentVolumeClaim", "metadata": {"name": "tickets-artifacts"}})
        stage.step()
        return stage.candidate()

    assert revision() == revision(adapters=[LEGAL])
    assert len({revision(lora=None), revision(), revision(lora={}), revision(lora={"maxRank": 64})}) == 4


def test_a_newer_operator_starts_no_pod_for_its_keeper(stage: Stage) -> None:
    stage.settings = replace(SETTINGS, operator_image="operator:newer")
    stage.settle()
    assert len(stage.revisions()) == 1


@pytest.mark.parametrize(("rank", "told"), [(1, 1), (2, 8), (8, 8), (9, 16), (16, 16), (512, 512), (513, None)])
def test_room_is_the_least_that_is_enough(rank: int, told: int | None) -> None:
    assert rank_for(rank) == told


def test_room_is_what_vllm_can_be_told() -> None:
    def room(*, gpus: bool) -> tuple[str, str, str]:
        stage = Stage(make_serve(**{**ON_VLLM, "lora": {"maxRank": 20, "maxActive": 2}, "parallelism": {"gpus": gpus}}))
        stage.step()
        args = stage.deployment(stage.candidate())["spec"]["template"]["spec"]["containers"][0]["args"]
        rank, slots, kept = (args[args.index(f"--max-{what}") + 1] for what in ("lora-rank", "loras", "cpu-loras"))
        return rank, slots, kept

    most = 2 * MOST_ADAPTERS
    assert room(gpus=True) == ("32", "2", str(most))
    assert room(gpus=False) == ("32", str(most + 1), str(most + 1)), "its last slot stays empty"


# ── Rules and events ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"engine": {"type": "LlamaCpp"}, "lora": {}}, "spec.lora needs spec.engine.type VLLM"),
        ({"engine": {"type": "VLLM"}, "adapters": [LEGAL]}, "spec.adapters needs room in the engine"),
    ],
)
def test_rules(spec: Object, said: str) -> None:
    (found,) = broken_by(ModelServeSpec.model_validate({"model": {"uri": "pvc://c/m"}, **spec}))
    assert said in found


def test_a_job_wakes_those_that_serve_its_adapter() -> None:
    own = Own()
    serve = make_serve(**{**ON_VLLM, "adapters": [TICKETS, LEGAL]})
    serve["metadata"]["resourceVersion"] = "1"
    own.keep(serve)
    job = trained()
    assert own.related(Key("FineTuneJob", "default", "tickets"), job) == [Key("ModelServe", "default", "facts")]
    assert own.related(Key("FineTuneJob", "default", "other"), job) == []


def test_nothing_changes_where_nobody_asks_for_room() -> None:
    stage = Stage(make_serve(**{k: v for k, v in ON_VLLM.items() if k != "lora"}))
    stage.roll_out()
    assert ("ConfigMap", "facts-adapters") not in stage.objects
    assert [c["name"] for c in pod_of(stage)["containers"]] == ["engine"]
    assert "AdaptersReady" not in stage.conditions()
