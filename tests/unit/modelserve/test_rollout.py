"""Rollouts of a ModelServe, pass by pass."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from tests.serving import Stage, make_serve
from tests.unit.modelserve.test_loading import UNSCHEDULABLE

from finetune_operator.conditions import LONGEST_MESSAGE
from finetune_operator.decision import Delete
from finetune_operator.names import ANNOTATION_RETRY, LABEL_REVISION, LABEL_SERVE
from finetune_trainer.contract.reports import Failure
from finetune_trainer.contract.served_rows import ServedRows
from finetune_trainer.contract.served_speed import ServedSpeed

WORKING = {"Ready": "False", "Reconciling": "True"}
STALLED = {"Ready": "False", "Stalled": "True"}
SERVING = {"Ready": "True"}
OTHER = {"uri": "pvc://models/other", "digest": "sha256:" + "c" * 64}
WRONG = Failure(reason="GateFailed", message="1 of 1 prompts: expects 'Velmora'")


def standing(stage: Stage) -> dict[str, str]:
    """Truth of each condition but Available."""
    return {kind: truth for kind, (truth, _) in stage.conditions().items() if kind != "Available"}


def reason(stage: Stage) -> str:
    return stage.conditions()["Ready"][1]


def is_available(stage: Stage) -> bool:
    return stage.conditions()["Available"][0] == "True"


def test_first_revision_loads_is_asked_and_goes_live() -> None:
    stage = Stage()
    decision = stage.step()
    assert [e.reason for e in decision.events] == ["RevisionLoading"]
    assert (standing(stage), reason(stage), stage.live()) == (WORKING, "Loading", None)
    revision = stage.candidate()
    stage.available(revision)
    stage.step()
    assert (standing(stage), reason(stage), stage.live()) == (WORKING, "Gating", None)
    stage.finish_gate()
    decision = stage.step()
    assert [e.reason for e in decision.events] == ["RevisionLive"]
    assert (standing(stage), reason(stage), stage.live()) == (SERVING, "Serving", revision)
    stage.settle()
    assert is_available(stage)
    status = stage.serve["status"]
    assert "candidate" not in status
    assert status["url"] == "http://facts.default.svc:8000/v1"
    assert status["replicas"] == 1
    labels = stage.deployment(revision)["spec"]["template"]["metadata"]["labels"]
    assert dict(pair.split("=") for pair in status["selector"].split(",")) == labels


def test_a_revision_is_asked_once_its_deployment_is_as_wanted_and_all_its_pods_answer() -> None:
    stage = Stage(make_serve(replicas=2))
    stage.step()
    assert stage.serve["status"]["replicas"] == 0
    stage.available(stage.candidate(), 1)
    stage.step()
    assert reason(stage) == "Loading"
    stage.available(stage.candidate())
    seen = stage.deployment(stage.candidate())["status"]["observedGeneration"]
    stage.deployment(stage.candidate())["status"]["observedGeneration"] = seen - 1
    stage.step()
    assert reason(stage) == "Loading", "its controller has not seen it yet"
    stage.available(stage.candidate())
    stage.step()
    assert reason(stage) == "Gating"


def test_no_pod_of_the_gate_is_selected_by_a_service() -> None:
    stage = Stage()
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    (job,) = stage.of("Job")
    assert LABEL_REVISION not in job["spec"]["template"]["metadata"]["labels"]


def test_live_revision_serves_until_the_next_one_has_passed() -> None:
    stage = Stage()
    old = stage.roll_out()
    stage.edit(model=OTHER)
    stage.step()
    new = stage.candidate()
    assert new != old
    assert (stage.live(), stage.revisions(), is_available(stage)) == (old, {old, new}, True)
    stage.available(new)
    stage.step()
    assert stage.live() == old
    stage.finish_gate()
    stage.step()
    # The pass that moves the Service leaves the old pods alone: they answer until the move is seen.
    assert (stage.live(), stage.revisions()) == (new, {old, new})
    stage.settle()
    stage.later(300)  # its rollback window
    stage.settle()
    assert (stage.revisions(), standing(stage)) == ({new}, SERVING)
    names = {s["metadata"]["name"] for s in stage.of("Service")}
    assert names == {"facts", f"facts-{new}"}


def test_failed_gate_refuses_and_is_not_tried_again() -> None:
    stage = Stage()
    old = stage.roll_out()
    stage.edit(model=OTHER)
    stage.step()
    new = stage.candidate()
    stage.available(new)
    stage.step()
    stage.finish_gate(WRONG)
    decision = stage.step()
    assert [(e.reason, e.warning) for e in decision.events] == [("RevisionRefused", True)]
    stage.settle()
    assert (standing(stage), reason(stage)) == (STALLED, "GateFailed")
    assert "expects 'Velmora'" in stage.message()
    assert (stage.live(), stage.revisions(), is_available(stage)) == (old, {old}, True)
    stage.later(3600)
    assert stage.step().actions == ()


def test_a_status_has_room_for_why_a_revision_was_refused() -> None:
    stage = Stage()
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate(Failure(reason="GateFailed", message="x" * 10_000))
    stage.settle()
    assert stage.serve["status"]["candidate"]["message"] == "x" * LONGEST_MESSAGE


def test_a_verdict_is_in_the_status_before_its_evidence_goes() -> None:
    """Found by the fault sweep: a deletion that failed half-way left no gate and no verdict, so all was loaded again."""
    stage = Stage()
    stage.roll_out()
    stage.edit(model=OTHER)
    assert stage.step().intent
    stage.available(stage.candidate())
    assert stage.step().intent
    stage.finish_gate(WRONG)
    decision = stage.step()
    assert decision.intent
    assert any(isinstance(action, Delete) for action in decision.actions)
    assert not stage.settle().intent


def refused_second(stage: Stage) -> str:
    """One revision serves and another stands refused; returns the first."""
    old = stage.roll_out()
    stage.edit(model=OTHER)
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate(WRONG)
    stage.settle()
    return old


def test_a_service_that_was_deleted_comes_back_and_takes_nothing_down() -> None:
    """While the newest model stands refused, the status alone tells what the Service selected."""
    stage = Stage()
    old = refused_second(stage)
    del stage.objects["Service", "facts"]
    stage.settle()
    assert (stage.live(), stage.revisions(), is_available(stage)) == (old, {old}, True)


def test_a_service_that_lost_its_owner_is_still_ours() -> None:
    stage = Stage()
    old = refused_second(stage)
    owners = stage.objects["Service", "facts"]["metadata"].pop("ownerReferences")
    stage.settle()
    assert stage.objects["Service", "facts"]["metadata"]["ownerReferences"] == owners
    assert (stage.live(), stage.revisions()) == (old, {old})


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
def test_an_edited_label_of_the_revision_costs_no_pod(kind: str) -> None:
    """Found by editing each field by hand: what was labelled as another revision was removed, while it served."""
    stage = Stage()
    old = refused_second(stage)
    stage.deleted.clear()
    child = stage.objects[kind, f"facts-{old}"]
    child["metadata"]["labels"][LABEL_REVISION] = "another"
    stage.settle()
    assert stage.objects[kind, f"facts-{old}"]["metadata"]["labels"][LABEL_REVISION] == old
    assert stage.deleted == []


def test_a_service_that_selects_what_never_was_costs_no_revision() -> None:
    stage = Stage()
    old = refused_second(stage)
    stage.objects["Service", "facts"]["spec"]["selector"][LABEL_REVISION] = "another"
    stage.settle()
    assert (stage.live(), stage.revisions()) == (old, {old})


def test_a_stranger_under_the_services_name_costs_no_revision() -> None:
    stage = Stage()
    old = refused_second(stage)
    mine = stage.objects["Service", "facts"]
    stage.put({"kind": "Service", "metadata": {"name": "facts", "uid": "theirs"}, "spec": {"selector": {"app": "theirs"}}})
    stage.step()
    assert (reason(stage), stage.revisions()) == ("NameTaken", {old})
    stage.put(mine)
    stage.settle()
    assert (stage.live(), stage.revisions()) == (old, {old})


def test_what_serves_says_no_more_how_it_was_to_load_though_the_status_of_its_promotion_was_lost() -> None:
    """Found by the fault sweep: what is known of a live revision was taken from the candidate that it had been."""
    stage = Stage()
    stage.roll_out()
    stage.edit(model=OTHER)
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate()
    before = stage.serve["status"]
    stage.step()
    stage.serve["status"] = before
    stage.settle()
    assert (stage.live(), stage.serve["status"]["live"].get("strategyMessage")) == (before["candidate"]["name"], None)
    assert stage.serve["status"]["live"]["state"] == "Live"


def test_what_is_promoted_is_told_as_live_in_the_same_pass() -> None:
    stage = Stage()
    stage.roll_out()
    stage.edit(model=OTHER)
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate()
    stage.step()
    live = stage.serve["status"]["live"]
    assert (live["name"], live["state"], live.get("strategyMessage")) == (stage.live(), "Live", None)


def test_what_a_service_that_is_away_selected_is_known_by_its_deployment_alone() -> None:
    stage = Stage()
    live = stage.roll_out()
    del stage.objects["Service", "facts"], stage.objects["ControllerRevision", f"facts-{live}"]
    stage.edit(model=OTHER)
    stage.step()
    assert stage.serve["status"]["live"]["name"] == live


def test_a_promotion_is_told_after_the_service_was_moved() -> None:
    stage = Stage()
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate()
    assert not stage.step().intent


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.annotate(ANNOTATION_RETRY, "1"),
        lambda s: s.edit(rollout={"gate": {"prompts": [{"prompt": "Hi"}]}}),
        lambda s: s.edit(resources={"limits": {"memory": "8Gi"}}),
    ],
    ids=["retry annotation", "another gate", "another template"],
)
def test_refused_revision_is_tried_again_after(change: Any) -> None:
    stage = Stage()
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate(WRONG)
    stage.settle()
    assert (standing(stage), is_available(stage)) == (STALLED, False)
    change(stage)
    stage.step()
    assert (standing(stage), reason(stage)) == (WORKING, "Loading")
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate()
    stage.settle()
    assert standing(stage) == SERVING


@pytest.mark.parametrize(
    "change",
    [lambda s: s.edit(replicas=2), lambda s: s.edit(rollout={"gate": {"maxTokens": 5}})],
    ids=["replicas", "gate"],
)
def test_what_is_no_part_of_a_revision_rolls_nothing_out(change: Any) -> None:
    stage = Stage()
    live = stage.roll_out()
    change(stage)
    stage.step()
    stage.available(live)
    stage.settle()
    assert (stage.live(), stage.revisions(), standing(stage)) == (live, {live}, SERVING)


def test_an_upgrade_of_the_operator_loads_no_model_anew() -> None:
    stage = Stage()
    live = stage.roll_out()
    before = stage.deployment(live)["spec"]["template"]
    stage.settings = replace(stage.settings, operator_image="finetune/operator:next")
    stage.edit(replicas=2)
    stage.step()
    stage.available(live)
    stage.settle()
    assert (stage.live(), stage.revisions(), standing(stage)) == (live, {live}, SERVING)
    assert stage.deployment(live)["spec"]["template"] == before
    assert stage.deployment(live)["spec"]["replicas"] == 2


def test_revert_while_the_next_one_loads_keeps_what_serves() -> None:
    stage = Stage()
    first = dict(stage.serve["spec"]["model"])
    old = stage.roll_out()
    stage.edit(model=OTHER)
    stage.step()
    new = stage.candidate()
    stage.edit(model=first)
    stage.settle()
    assert (stage.live(), stage.revisions(), standing(stage)) == (old, {old}, SERVING)
    assert not any(old in name for name in stage.deleted)
    assert any(new in name for name in stage.deleted)
    assert "candidate" not in stage.serve["status"]


def test_revert_right_after_promotion_goes_straight_back() -> None:
    stage = Stage()
    first = dict(stage.serve["spec"]["model"])
    old = stage.roll_out()
    stage.edit(model=OTHER)
    stage.step()
    new = stage.candidate()
    stage.available(new)
    stage.step()
    stage.finish_gate()
    stage.step()  # promoted; the old one still runs, and has passed its gate
    stage.edit(model=first)
    stage.step()
    assert (stage.live(), stage.revisions()) == (old, {old, new})
    stage.settle()
    stage.later(300)
    stage.settle()
    assert (stage.live(), stage.revisions(), standing(stage)) == (old, {old}, SERVING)


def test_a_third_revision_takes_the_place_of_the_one_that_loads() -> None:
    stage = Stage()
    old = stage.roll_out()
    stage.edit(model=OTHER)
    stage.step()
    second = stage.candidate()
    stage.available(second)
    stage.step()
    stage.edit(model={"uri": "pvc://models/third"})
    stage.settle()
    third = stage.candidate()
    assert (stage.live(), stage.revisions()) == (old, {old, third})
    assert [j["metadata"]["labels"][LABEL_REVISION] for j in stage.of("Job")] == [old]


def test_gate_edited_while_it_runs_is_asked_anew() -> None:
    stage = Stage()
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    (before,) = stage.of("Job")
    stage.edit(rollout={"gate": {"prompts": [{"prompt": "Hi"}]}})
    stage.settle()
    (after,) = stage.of("Job")
    assert after["metadata"]["name"] != before["metadata"]["name"]
    stage.finish_gate()
    stage.settle()
    assert standing(stage) == SERVING


def test_status_that_was_lost_is_found_again() -> None:
    stage = Stage()
    live = stage.roll_out()
    before = stage.serve["status"]
    stage.serve["status"] = {"observedGeneration": -1}
    stage.settle()
    assert (stage.live(), stage.revisions()) == (live, {live})
    assert stage.serve["status"]["live"]["modelUri"] == before["live"]["modelUri"]
    assert stage.serve["status"]["live"]["modelDigest"] == before["live"]["modelDigest"]
    assert standing(stage) == SERVING


def test_what_an_earlier_release_left_without_a_history_serves_since_its_deployment_was_made() -> None:
    stage = Stage()
    live = stage.roll_out()
    made = stage.deployment(live)["metadata"]["creationTimestamp"]
    del stage.objects["Service", "facts"]["metadata"]["annotations"]
    stage.serve["status"] = {"observedGeneration": -1}
    stage.later(60)
    stage.settle()
    assert stage.serve["status"]["live"]["promotedAt"] == made


def test_deployment_of_the_live_revision_is_put_back() -> None:
    stage = Stage()
    live = stage.roll_out()
    del stage.objects["Deployment", f"facts-{live}"]
    stage.step()
    assert stage.revisions() == {live}
    assert (standing(stage), is_available(stage)) == (WORKING, False)
    stage.available(live)
    stage.settle()
    assert standing(stage) == SERVING


def refused_beside(stage: Stage) -> str:
    """A live revision, and another that was refused: what is live can no longer be told from the spec."""
    live = refused_second(stage)
    assert (stage.live(), stage.revisions(), standing(stage)) == (live, {live}, STALLED)
    return live


def set_image(deployment: Any) -> None:
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = "somebody/elses:latest"


TAMPERED = {
    "kubectl set image": lambda s, live: set_image(s.deployment(live)),
    "kubectl scale": lambda s, live: s.deployment(live)["spec"].update(replicas=7),
    "kubectl delete deployment": lambda s, live: s.objects.pop(("Deployment", f"facts-{live}")),
    "another port": lambda s, _: s.objects["Service", "facts"]["spec"].update(ports=[{"port": 1}]),
    "another selector": lambda s, _: s.objects["Service", "facts"]["spec"]["selector"].update({LABEL_SERVE: "y"}),
    "one more word in the selector": lambda s, _: s.objects["Service", "facts"]["spec"]["selector"].update(app="x"),
    "the revision's Service": lambda s, live: s.objects.pop(("Service", f"facts-{live}")),
}


@pytest.mark.parametrize("settled", [True, False], ids=["asked for", "beside a refused candidate"])
@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_what_serves_is_put_back_as_it_was(tamper: Any, settled: bool) -> None:
    stage = Stage()
    live = stage.roll_out() if settled else refused_beside(stage)
    stage.templates_may_change = True
    before = {key: copy.deepcopy(stage.objects[key]["spec"]) for key in (("Deployment", f"facts-{live}"), ("Service", "facts"))}
    tamper(stage, live)
    stage.settle()
    for key, spec in before.items():
        assert stage.objects[key]["spec"] == spec
    stage.available(live)
    stage.settle()
    assert (stage.live(), standing(stage)) == (live, SERVING if settled else STALLED)


def test_a_candidates_service_that_was_refused_once_comes_later() -> None:
    stage = Stage()
    stage.step()
    revision = stage.candidate()
    del stage.objects["Service", f"facts-{revision}"]  # as if its quota had been used up
    stage.step()
    assert ("Service", f"facts-{revision}") in stage.objects


def test_a_revision_that_an_earlier_release_started_is_recorded_as_it_is() -> None:
    stage = Stage()
    live = stage.roll_out()
    del stage.objects["ControllerRevision", f"facts-{live}"]
    found = stage.deployment(live)
    found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
    found["spec"]["template"]["spec"]["initContainers"][0]["image"] = "finetune/operator:earlier"
    before = copy.deepcopy(found["spec"])
    stage.settle()
    assert stage.deployment(live)["spec"] == before, "an upgrade restarts no pod"
    set_image(stage.deployment(live))
    stage.templates_may_change = True
    stage.settle()
    assert stage.deployment(live)["spec"] == before


def test_live_revision_is_scaled_while_another_loads() -> None:
    stage = Stage()
    old = stage.roll_out()
    stage.edit(model=OTHER)
    stage.settle()
    stage.edit(replicas=3)
    stage.settle()
    assert stage.deployment(old)["spec"]["replicas"] == 3
    assert stage.deployment(stage.candidate())["spec"]["replicas"] == 3
    assert stage.live() == old


@pytest.mark.parametrize(("spec", "why"), [({"suspend": True}, "Suspended"), ({"replicas": 0}, "ScaledToZero")])
def test_paused_has_no_pods_and_comes_back_as_it_was(spec: dict[str, Any], why: str) -> None:
    stage = Stage()
    live = stage.roll_out()
    stage.edit(**spec)
    stage.step()
    stage.available(live, 0)
    stage.settle()
    assert stage.conditions() == {"Ready": ("True", why), "Available": ("False", why)}
    assert stage.deployment(live)["spec"]["replicas"] == 0
    assert stage.live() == live
    stage.edit(suspend=False, replicas=1)
    stage.step()
    assert standing(stage) == WORKING
    stage.available(live)
    stage.settle()
    assert (standing(stage), stage.revisions()) == (SERVING, {live})
    assert len(stage.of("Job")) == 1, "it has passed its gate already"


def test_pausing_while_a_revision_loads_removes_it() -> None:
    stage = Stage()
    stage.step()
    stage.edit(suspend=True)
    stage.settle()
    assert (stage.revisions(), standing(stage)) == (set(), SERVING)


def test_children_of_an_earlier_serve_of_the_same_name_are_left_to_the_collector() -> None:
    stage = Stage()
    live = stage.roll_out()
    for body in stage.objects.values():
        for owner in body["metadata"].get("ownerReferences", []):
            owner["uid"] = "earlier"
    before = dict(stage.objects)
    decision = stage.step()
    assert decision.actions == ()
    assert reason(stage) == "NameTaken"
    assert stage.objects == before
    assert stage.live() == live


# ── Test rows of the model's evaluation ───────────────────────────────────────────────────────────────────────────────

EVALUATED = {"uri": "pvc://models/q4", "digest": "sha256:" + "a" * 64, "evaluation": "pvc://models/evaluate/" + "e" * 20}
ALIKE = ServedRows(asked=8, same_token_ids=8, same_answers=7)


def gated(**spec: Any) -> tuple[Stage, str]:
    """A revision that is asked, and its name."""
    stage = Stage(make_serve(**{"model": EVALUATED, **spec}))
    stage.put({"kind": "Secret", "metadata": {"name": "keys"}})
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    return stage, stage.candidate()


def trial(stage: Stage) -> str:
    return str(stage.serve["status"]["candidate"]["trial"])


def test_what_became_of_the_test_rows_is_told_with_the_revision() -> None:
    stage, _ = gated()
    stage.finish_gate(served_rows=ALIKE)
    stage.settle()
    assert stage.serve["status"]["live"]["testRows"] == {"asked": 8, "sameTokenIds": 8, "sameAnswers": 7}
    stage.edit(model={**EVALUATED, "evaluation": "pvc://models/evaluate/" + "f" * 20})
    stage.settle()
    assert standing(stage) == SERVING, "another evaluation of the same model rolls nothing out"
    assert stage.serve["status"]["live"]["testRows"]["sameAnswers"] == 7


def test_numbers_that_a_crash_kept_from_the_status_are_read_from_the_gates_pod() -> None:
    stage, revision = gated()
    before = stage.serve["status"]
    stage.finish_gate(served_rows=ALIKE)
    stage.step()
    stage.serve["status"] = before
    stage.settle()
    assert stage.live() == revision
    assert stage.serve["status"]["live"]["testRows"]["sameAnswers"] == 7


def test_rows_that_are_answered_otherwise_leave_the_old_revision_serving() -> None:
    stage = Stage()
    old = stage.roll_out()
    stage.edit(model={**OTHER, "evaluation": "pvc://models/evaluate/" + "e" * 20})
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    failure = Failure(reason="VerificationFailed", message="1 of 8 test rows were answered as in the evaluation")
    stage.finish_gate(failure, served_rows=ServedRows(asked=8, same_token_ids=8, same_answers=1))
    stage.settle()
    assert (standing(stage), reason(stage), stage.live()) == (STALLED, "VerificationFailed", old)
    assert stage.serve["status"]["candidate"]["testRows"] == {"asked": 8, "sameTokenIds": 8, "sameAnswers": 1}


def test_test_rows_are_part_of_the_trial_and_of_no_revision() -> None:
    plain, revision = gated(model={k: v for k, v in EVALUATED.items() if k != "evaluation"})
    asked, same = gated()
    none, again = gated(rollout={"gate": {"testRows": {"count": 0}}})
    assert revision == same == again
    # Who is asked no rows is tried as before there were any: an upgrade of the operator tries nothing anew.
    assert (trial(plain), trial(none)) == ("a84085", "a84085")
    assert trial(asked) != trial(plain)
    strict, _ = gated(rollout={"gate": {"testRows": {"minEqual": 1}}})
    assert trial(strict) not in (trial(asked), trial(plain))


def test_the_gates_pod_reads_the_rows_where_the_engine_has_its_claim_mounted() -> None:
    stage, revision = gated()
    (job,) = stage.of("Job")
    pod = job["spec"]["template"]["spec"]
    (ask,) = pod["containers"]
    rows = ["--rows", EVALUATED["evaluation"], "--count", "8", "--min-equal", "0.5"]
    assert ask["command"][-len(rows) :] == rows
    (mount,) = [m for m in ask["volumeMounts"] if m["mountPath"].endswith("/claims/models")]
    assert mount["readOnly"] is True
    (beside,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert beside["labelSelector"]["matchLabels"][LABEL_REVISION] == revision
    # The rows have as much time as the prompts.
    assert job["spec"]["activeDeadlineSeconds"] == 3 * (2 * 300 + 300)


def test_the_gates_pod_has_no_claim_of_an_evaluation_that_it_does_not_ask() -> None:
    stage, _ = gated(rollout={"gate": {"testRows": {"count": 0}}})
    pod = stage.of("Job")[0]["spec"]["template"]["spec"]
    assert "--rows" not in pod["containers"][0]["command"]
    assert not any("persistentVolumeClaim" in v for v in pod["volumes"])


def test_the_gates_pod_reads_a_bucket_with_the_models_credentials() -> None:
    place = {"secretRef": {"name": "keys"}, "endpoint": "http://s3:7070", "region": "eu"}
    model = {"uri": "s3://b/job/merge/1", "evaluation": "s3://b/job/evaluate/" + "e" * 20, **place}
    stage, _ = gated(model=model)
    pod = stage.of("Job")[0]["spec"]["template"]["spec"]
    (ask,) = pod["containers"]
    (mount,) = (m for m in ask["volumeMounts"] if m["mountPath"] == "/mnt/finetune/secrets/store")
    assert {"name": mount["name"], "secret": {"secretName": "keys", "defaultMode": 0o440}} in pod["volumes"]
    assert ask["command"][-4:] == ["--endpoint", "http://s3:7070", "--region", "eu"]
    assert "affinity" not in pod
    assert not any("persistentVolumeClaim" in v for v in pod["volumes"])


def test_a_claim_of_the_evaluation_that_is_missing_is_told_before_a_pod_waits_for_it() -> None:
    stage = Stage(make_serve(model={**EVALUATED, "evaluation": "pvc://gone/evaluate/" + "e" * 20}))
    stage.step()
    assert (standing(stage), reason(stage)) == (STALLED, "ClaimNotFound")
    assert "PersistentVolumeClaim gone" in stage.message()


# ── Speed ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

SLOW = ServedSpeed(prompts=1, tokens_per_second=4.5, first_token_milliseconds=800)
FLOORS = {"gate": {"minTokensPerSecond": 20, "maxFirstTokenMilliseconds": 500}}


def test_a_speed_that_is_asked_for_is_told_with_the_revision() -> None:
    stage = Stage(make_serve(rollout=FLOORS))
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    (job,) = stage.of("Job")
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[-4:] == ["--min-tokens-per-second", "20", "--max-first-token-milliseconds", "500"]
    assert job["spec"]["activeDeadlineSeconds"] == 3 * (2 * 300 + 300), "the streams have as much time as the answers"
    stage.finish_gate(Failure(reason="TooSlow", message="the answers come at 4.5 tokens/s"), served_speed=SLOW)
    stage.settle()
    assert (standing(stage), reason(stage)) == (STALLED, "TooSlow")
    told = {"prompts": 1, "tokensPerSecond": 4.5, "firstTokenMilliseconds": 800}
    assert stage.serve["status"]["candidate"]["speed"] == told


def test_a_floor_is_part_of_the_trial_and_of_no_revision() -> None:
    plain, revision = gated(model={k: v for k, v in EVALUATED.items() if k != "evaluation"})
    fast, same = gated(model={k: v for k, v in EVALUATED.items() if k != "evaluation"}, rollout=FLOORS)
    assert (revision, trial(plain)) == (same, "a84085"), "who asks for no speed is tried as before there was any"
    assert trial(fast) != trial(plain)


def test_a_live_revisions_pod_that_finds_no_node_is_waited_for_and_then_somebody_should_look() -> None:
    stage = Stage()
    live = stage.roll_out()
    stage.available(live, 0)
    stage.pod(live, conditions=[UNSCHEDULABLE])
    stage.step()
    assert (standing(stage), reason(stage)) == (WORKING, "Unschedulable")
    stage.later(300)
    stage.step()
    assert (standing(stage), reason(stage), stage.revisions()) == (STALLED, "Unschedulable", {live})


def test_of_a_revision_that_nothing_tells_of_any_more_nothing_is_made_up() -> None:
    stage = Stage()
    old = stage.roll_out()
    for kind in ("Deployment", "ControllerRevision"):
        del stage.objects[kind, f"facts-{old}"]
    stage.edit(model=OTHER)
    stage.settle()
    assert stage.candidate() != old
    assert stage.revisions() == {stage.candidate()}
    assert ("ControllerRevision", f"facts-{old}") not in stage.objects


def test_a_live_revision_without_its_deployment_has_no_pods_and_gets_it_again() -> None:
    stage = Stage()
    live = stage.roll_out()
    del stage.objects["Deployment", stage.deployment(live)["metadata"]["name"]]
    stage.step()
    assert (stage.revisions(), standing(stage)) == ({live}, WORKING)
    assert stage.message() == "0 of 1 pods of the live revision are available"
