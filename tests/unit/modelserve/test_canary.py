"""A canary: which share a candidate takes and by what, when it goes on, and what brings all traffic back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.serving import Stage, make_serve
from tests.unit.modelserve.test_contract import kstatus
from tests.unit.modelserve.test_rollout import OTHER, SERVING, STALLED, WORKING, is_available, reason, standing
from tests.unit.modelserve.test_window import CRASHED, told

from finetune_operator.meta import Object
from finetune_operator.names import ANNOTATION_PIN, ANNOTATION_PROMOTE, ANNOTATION_RETRY, LABEL_WATCH, serve_labels
from finetune_trainer.contract.reports import Failure
from finetune_trainer.contract.traffic import Traffic

ROUTE: dict[str, Any] = {"gateway": {"name": "public", "namespace": "infra"}, "hostname": "bot.example.com"}
STEPS: list[dict[str, int]] = [{"weight": 25, "pauseSeconds": 300}, {"weight": 50, "pauseSeconds": 600}]
BY_HAND: list[dict[str, int]] = [{"weight": 25}, {"weight": 50}]
WIDE = serve_labels("facts")


def accept(stage: Stage, truth: str = "True", kind: str = "Accepted", **told: str) -> None:
    """The gateway's controller: what it says of the route."""
    condition = {"type": kind, "status": truth, **told}
    parent = {"parentRef": {"name": "public"}, "conditions": [condition]}
    stage.objects["HTTPRoute", "facts"]["status"] = {"parents": [parent]}


def loaded(steps: list[dict[str, int]] = STEPS, **spec: Any) -> tuple[Stage, str, str]:
    """A live revision of four pods, and another that is about to pass its gate."""
    rollout = {"canary": {"steps": steps}, **spec.pop("rollout", {})}
    stage = Stage(make_serve(**{"replicas": 4, "rollout": rollout, **spec}))
    old = stage.roll_out()
    if "route" in spec:
        accept(stage)
        stage.settle()
    stage.later(3600)
    stage.edit(model=OTHER)
    stage.step()
    stage.available(new := stage.candidate())
    stage.step()
    return stage, old, new


def begun(steps: list[dict[str, int]] = STEPS, **spec: Any) -> tuple[Stage, str, str]:
    """The new revision takes its first share."""
    stage, old, new = loaded(steps, **spec)
    stage.finish_gate()
    stage.settle()
    return stage, old, new


def canary(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = stage.serve["status"]["canary"]
    return found


def at(stage: Stage) -> tuple[int, int, float]:
    """Step, weight, and the share that there really is."""
    return canary(stage)["step"], canary(stage)["weight"], canary(stage)["share"]


def selector(stage: Stage) -> dict[str, str]:
    found: dict[str, str] = stage.objects["Service", "facts"]["spec"]["selector"]
    return found


def backends(stage: Stage) -> dict[str, int]:
    """Weights of the route, by the Service."""
    (rule,) = stage.objects["HTTPRoute", "facts"]["spec"]["rules"]
    return {b["name"]: b["weight"] for b in rule["backendRefs"]}


def pods(stage: Stage, revision: str) -> int:
    return int(stage.deployment(revision)["spec"]["replicas"])


# ── by replicas ──


def test_a_share_by_pods_begins_once_the_gate_is_passed() -> None:
    stage, old, new = loaded()
    assert (stage.live(), pods(stage, old), pods(stage, new)) == (old, 4, 1), "it loads with the pods of its first step"
    stage.finish_gate()
    decision = stage.step()
    assert decision.intent, "the status tells of the share before there is one"
    assert [e.reason for e in decision.events] == ["Canary"]
    assert (selector(stage), stage.revisions(), standing(stage)) == (WIDE, {old, new}, WORKING)
    assert (reason(stage), is_available(stage), kstatus(stage.serve)) == ("Canary", True, "InProgress")
    assert canary(stage) == {
        "step": 1, "weight": 25, "share": 20.0, "by": "Replicas", "signals": ["Restarts", "Probes"],
        "since": "2026-11-23T16:00:00Z", "until": "2026-11-23T16:05:00Z",
    }  # fmt: skip
    assert f"revision {new} takes 20 % of the traffic by 1 of 5 pods" in stage.message()
    assert "step 1 of 2, until 2026-11-23T16:05:00Z" in stage.message()
    assert stage.serve["status"]["live"]["name"] == old
    assert stage.serve["status"]["selector"].endswith(old), "an autoscaler counts the live revision's pods"
    assert stage.settle().requeue_after == 300


def test_a_share_that_pods_can_not_give_is_told() -> None:
    stage, old, _ = begun()
    text = f"no number of pods is nearer to 25 % beside the 4 of revision {old}, which stay; spec.route gives any share"
    assert text in stage.message()


@pytest.mark.parametrize(("weight", "is_near"), [(49, True), (48, False), (1, False)])
def test_a_share_within_one_percent_is_what_was_asked_for(weight: int, is_near: bool) -> None:
    stage, _, _ = begun([{"weight": weight}], replicas=1)
    assert ("no number of pods is nearer" not in stage.message()) is is_near
    assert selector(stage) == WIDE


@pytest.mark.parametrize(
    ("replicas", "weight", "count", "share"),
    [
        (1, 10, 1, 50.0),
        (3, 25, 1, 25.0),
        (4, 25, 1, 20.0),
        (9, 10, 1, 10.0),
        (9, 11, 1, 10.0),
        (9, 12, 1, 10.0),
        (4, 40, 3, 42.9),
        (7, 44, 6, 46.2),
        (4, 50, 4, 50.0),
        (4, 90, 4, 50.0),
    ],
)
def test_the_number_of_pods_that_comes_nearest(replicas: int, weight: int, count: int, share: float) -> None:
    stage = Stage(make_serve(replicas=replicas, rollout={"canary": {"steps": [{"weight": weight}]}}))
    stage.roll_out()
    stage.edit(model=OTHER)
    new = stage.roll_out_canary()
    assert (pods(stage, new), canary(stage)["share"]) == (count, share)
    assert ("no number of pods is nearer" in stage.message()) is (abs(weight - share) > 1)


def test_step_by_step_until_it_takes_all_and_the_old_one_stays_warm() -> None:
    stage, old, new = begun()
    stage.later(299)
    assert (stage.step().requeue_after, at(stage)) == (1, (1, 25, 20.0))
    stage.later(1)
    stage.settle()
    assert (at(stage), pods(stage, new)) == ((2, 25, 20.0), 4), "the weight of before, until the pods are up"
    assert "step 2 of 2, 50 %, begins once 4 pods are available, 1 are" in stage.message()
    stage.later(60)
    stage.available(new)
    stage.step()
    assert (at(stage), canary(stage)["until"]) == ((2, 50, 50.0), "2026-11-23T16:16:00Z"), "the pause counts from then"
    stage.later(600)
    decision = stage.step()
    assert [e.reason for e in decision.events] == ["RevisionLive"]
    stage.settle()
    assert (stage.live(), standing(stage), stage.revisions()) == (new, SERVING, {old, new})
    assert "canary" not in stage.serve["status"]
    window = stage.serve["status"]["rollbackWindow"]
    assert (window["revision"], window["until"]) == (old, "2026-11-23T16:21:00Z")
    assert told(stage) == [(new, "2026-11-23T16:16:00Z", None), (old, "2026-11-23T15:00:00Z", None)]


def test_it_takes_all_with_all_its_pods() -> None:
    stage, old, new = begun([{"weight": 25, "pauseSeconds": 300}])
    stage.later(300)
    stage.settle()
    assert (at(stage), pods(stage, new), stage.live()) == ((1, 25, 20.0), 4, None)
    assert "it takes all once 4 pods are available, 1 are" in stage.message()
    stage.available(new)
    stage.settle()
    assert (stage.live(), pods(stage, old)) == (new, 4)


def test_another_number_of_replicas_is_another_number_of_pods() -> None:
    stage, old, new = begun()
    stage.edit(replicas=8)
    stage.settle()
    assert (pods(stage, old), pods(stage, new), at(stage)) == (8, 3, (1, 25, 20.0))
    stage.available(old)
    stage.available(new)
    stage.settle()
    assert at(stage) == (1, 25, 27.3)


def test_pods_that_are_away_for_a_moment_are_told_and_no_verdict() -> None:
    stage, old, new = begun()
    stage.available(old, 3)
    stage.step()
    assert at(stage) == (1, 25, 25.0)
    stage.available(old, 1)
    stage.step()
    assert (at(stage), f"as 1 of 4 pods of revision {old} are available" in stage.message()) == ((1, 25, 50.0), True)
    stage.available(old)
    stage.available(new, 0)
    stage.step()
    assert (at(stage), "as 0 of its 1 pods are available, and not 25 %" in stage.message()) == ((1, 25, 0), True)
    assert (stage.revisions(), standing(stage)) == ({old, new}, WORKING)


# ── what people say ──


def test_without_a_pause_it_waits_to_be_let_on() -> None:
    stage, old, new = begun(BY_HAND)
    assert (reason(stage), kstatus(stage.serve)) == ("AwaitingPromotion", "InProgress")
    assert f"{ANNOTATION_PROMOTE}={new}/2; without /2 it takes all" in stage.message()
    stage.later(10**6)
    assert stage.settle().requeue_after is None
    stage.annotate(ANNOTATION_PROMOTE, f"{new}/2")
    stage.step()
    stage.available(new)
    stage.settle()
    assert (at(stage), reason(stage)) == ((2, 50, 50.0), "AwaitingPromotion")
    assert f"{ANNOTATION_PROMOTE}={new}/3" in stage.message()
    stage.annotate(ANNOTATION_PROMOTE, f"{new}/3")
    stage.settle()
    assert (stage.live(), stage.revisions()) == (new, {old, new})


@pytest.mark.parametrize("steps", [STEPS, BY_HAND])
def test_promote_skips_all_steps(steps: list[dict[str, int]]) -> None:
    stage, _, new = begun(steps)
    stage.annotate(ANNOTATION_PROMOTE, new)
    stage.settle()
    assert (stage.live(), pods(stage, new), at(stage)) == (None, 4, (1, 25, 20.0))
    stage.available(new)
    stage.settle()
    assert stage.live() == new


def test_promoted_before_its_gate_has_ended_it_takes_all_at_once() -> None:
    stage, old, new = loaded()
    stage.annotate(ANNOTATION_PROMOTE, new)
    stage.finish_gate()
    stage.settle()
    assert (stage.live(), pods(stage, new), at(stage)) == (old, 4, (1, 0, 0))
    stage.available(new)
    stage.settle()
    assert stage.live() == new


@pytest.mark.parametrize(
    "value", ["", "another", "another/2", "{new}/", "{new}/0", "{new}/-2", "{new}/two", "{new}/2/3", "{new}/٢"]
)
def test_what_names_no_step_lets_nothing_on(value: str) -> None:
    stage, _, new = begun(BY_HAND)
    stage.annotate(ANNOTATION_PROMOTE, value.format(new=new))
    stage.settle()
    assert at(stage) == (1, 25, 20.0)


def test_promotion_by_hand_begins_with_the_first_step() -> None:
    stage, old, new = begun(rollout={"promotion": "Manual"})
    assert (stage.live(), reason(stage), stage.serve["status"]["candidate"]["state"]) == (old, "AwaitingPromotion", "Passed")
    assert f"{ANNOTATION_PROMOTE}={new}/1; without /1 it takes all" in stage.message()
    stage.annotate(ANNOTATION_PROMOTE, f"{new}/1")
    stage.settle()
    assert at(stage) == (1, 25, 20.0)


@pytest.mark.parametrize("route", [{}, {"route": ROUTE}])
def test_an_edit_a_pin_or_a_suspension_takes_the_share_back(route: Any) -> None:
    for happens in ("edit", "pin", "suspend", "zero"):
        stage, old, new = begun(**route)
        match happens:
            case "edit":
                stage.edit(model=make_serve()["spec"]["model"])
            case "pin":
                stage.annotate(ANNOTATION_PIN, old)
            case "suspend":
                stage.edit(suspend=True)
            case "zero":
                stage.edit(replicas=0)
        stage.step()
        assert (stage.live(), stage.revisions()) == (old, {old, new}), "its pods stay until the move is seen"
        stage.settle()
        assert (stage.live(), stage.revisions(), standing(stage)) == (old, {old}, SERVING)
        assert "canary" not in stage.serve["status"]
        assert not route or backends(stage) == {"facts": 1}


def test_a_third_model_takes_the_share_back_and_begins_anew() -> None:
    stage, old, new = begun()
    stage.edit(model={"uri": "pvc://models/third"})
    stage.settle()
    third = stage.candidate()
    assert (stage.live(), stage.revisions(), "canary" in stage.serve["status"]) == (old, {old, third}, False)
    assert new not in stage.revisions()
    stage.available(third)
    stage.step()
    stage.finish_gate()
    stage.settle()
    assert at(stage) == (1, 25, 20.0)


def test_steps_that_are_edited_count_from_where_it_is() -> None:
    stage, _, new = begun()
    stage.edit(rollout={"canary": {"steps": [{"weight": 50, "pauseSeconds": 900}, {"weight": 60}]}})
    stage.settle()
    stage.available(new)
    stage.settle()
    assert (at(stage), canary(stage)["until"]) == ((1, 50, 50.0), "2026-11-23T16:15:00Z")
    stage.edit(rollout={})
    stage.settle()
    assert stage.live() == new, "without steps it takes all"


# ── what brings the traffic back ──


@pytest.mark.parametrize("route", [{}, {"route": ROUTE}])
def test_an_engine_that_ends_gives_the_share_back(route: Any) -> None:
    stage, old, new = begun(**route)
    stage.later(42)
    stage.engine(new, restarts=1, ready=True, **CRASHED)
    decision = stage.step()
    assert decision.intent
    assert [(e.reason, e.warning) for e in decision.events] == [("RevisionRolledBack", True)]
    assert (stage.live(), stage.revisions()) == (old, {old, new}), "its pods stay until the move is seen"
    stage.settle()
    assert (stage.revisions(), standing(stage), reason(stage)) == ({old}, STALLED, "EngineRestarted")
    assert (is_available(stage), kstatus(stage.serve), pods(stage, old)) == (True, "Failed", 4)
    share = 25 if route else 20
    assert f"with {share} % of the traffic, 42 s after it took traffic, the engine of pod" in stage.message()
    assert "canary" not in stage.serve["status"]


def test_a_failing_probe_gives_the_share_back_after_its_time() -> None:
    stage, old, new = begun()
    stage.engine(new, ready=False)
    stage.available(new, 0)
    assert stage.settle().requeue_after == 30
    stage.later(30)
    stage.settle()
    assert (stage.live(), stage.revisions(), reason(stage)) == (old, {old}, "ProbesFailed")


def test_a_pod_of_a_later_step_that_can_not_load_gives_the_share_back() -> None:
    stage, old, new = begun()
    stage.later(300)
    stage.settle()
    report = json.dumps({"failure": {"reason": "ModelDamaged", "message": "q4.gguf was changed"}})
    ended = {"terminated": {"exitCode": 24, "reason": "Error", "message": report, "finishedAt": stage.stamp()}}
    stage.pod(new, initContainerStatuses=[{"name": "load", "restartCount": 1, "state": {}, "lastState": ended}])
    stage.settle()
    assert (stage.live(), stage.revisions(), reason(stage)) == (old, {old}, "ModelDamaged")


def test_a_pod_of_a_later_step_that_finds_no_room_is_waited_for() -> None:
    stage, old, new = begun()
    stage.later(300)
    stage.settle()
    waits = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes", "lastTransitionTime": stage.stamp()}
    stage.pod(new, conditions=[waits])
    stage.later(400)
    stage.settle()
    assert (at(stage), standing(stage), reason(stage)) == ((2, 25, 20.0), STALLED, "Unschedulable")
    assert stage.revisions() == {old, new}
    stage.pod(new)
    stage.available(new)
    stage.settle()
    assert (at(stage), standing(stage)) == ((2, 50, 50.0), WORKING)


def test_a_pod_that_can_not_load_before_there_is_a_share_is_refused() -> None:
    stage, old, new = loaded()
    stage.annotate(ANNOTATION_PROMOTE, new)
    stage.finish_gate()
    stage.settle()
    stage.engine(new, ready=False, restarts=1, exitCode=137, reason="OOMKilled")
    stage.settle()
    assert (stage.live(), stage.revisions(), reason(stage)) == (old, {old}, "OutOfMemory")
    assert "rolledBackAt" not in stage.serve["status"]["candidate"]


def test_traffic_never_goes_to_a_live_revision_that_does_not_answer() -> None:
    stage, old, new = begun()
    stage.available(old, 0)
    stage.engine(new, restarts=1, **CRASHED)
    stage.settle()
    assert (stage.revisions(), at(stage)) == ({old, new}, (1, 25, 100))
    stage.available(old)
    stage.settle()
    assert (stage.live(), stage.revisions()) == (old, {old})


def watches(stage: Stage) -> list[Object]:
    return [o for kind in ("Job", "Service") for o in stage.of(kind) if LABEL_WATCH in o["metadata"]["labels"]]


def test_one_watch_reads_the_engines_for_all_steps_and_brings_traffic_back() -> None:
    stage, old, new = begun(engine={"type": "VLLM"})
    assert canary(stage)["signals"] == ["Restarts", "Probes", "Errors"]
    (job,) = [o for o in watches(stage) if o["kind"] == "Job"]
    first, week = job["metadata"]["name"], 7 * 24 * 3600
    assert json.loads(job["spec"]["template"]["spec"]["containers"][0]["command"][-1])["seconds"] == week
    (service,) = [o for o in watches(stage) if o["kind"] == "Service"]
    assert service["spec"]["selector"] == {**WIDE, "finetune.dev/revision": new}
    stage.later(300)
    stage.settle()
    stage.available(new)
    stage.settle()
    assert (at(stage)[0], [o["metadata"]["name"] for o in watches(stage) if o["kind"] == "Job"]) == (2, [first])
    errors = Failure(reason="TooManyErrors", message="9 of 60 requests ended with an error of the engine")
    stage.finish_gate(errors, traffic=Traffic(requests=60, errors=9))
    stage.settle()
    assert (stage.live(), stage.revisions(), reason(stage), watches(stage)) == (old, {old}, "TooManyErrors", [])
    candidate = stage.serve["status"]["candidate"]
    assert (candidate["traffic"]["errors"], candidate["rolledBackAt"]) == (9, "2026-11-23T16:05:00Z")


def test_a_watch_that_has_ended_is_no_signal_and_no_verdict() -> None:
    stage, old, new = begun(engine={"type": "VLLM"}, steps=BY_HAND)
    stage.finish_gate()
    stage.settle()
    assert (canary(stage)["signals"], stage.revisions()) == (["Restarts", "Probes"], {old, new})


# ── what is lost ──


def taken_back() -> tuple[Stage, str, str]:
    stage, old, new = begun()
    stage.later(60)
    stage.engine(new, restarts=1, **CRASHED)
    stage.settle()
    return stage, old, new


def test_a_single_pod_that_serves_takes_all_back() -> None:
    stage, old, new = begun(replicas=1)
    stage.engine(new, restarts=1, **CRASHED)
    stage.settle()
    assert (stage.live(), stage.revisions()) == (old, {old})


def test_what_gave_its_share_back_is_not_tried_again() -> None:
    stage, old, new = taken_back()
    assert told(stage)[1] == (new, "2026-11-23T16:00:00Z", "EngineRestarted")
    stage.later(7200)
    assert stage.step().actions == ()
    stage.serve["status"] = {"observedGeneration": -1}  # as when Git replaces the object
    stage.settle()
    assert (stage.live(), stage.revisions(), reason(stage)) == (old, {old}, "EngineRestarted")
    stage.annotate(ANNOTATION_RETRY, "1")
    stage.step()
    stage.available(new)
    stage.step()
    stage.finish_gate()
    stage.settle()
    assert at(stage) == (1, 25, 20.0)


def test_nothing_is_remembered_of_it_where_no_revision_is() -> None:
    stage, old, new = begun(rollout={"revisionHistoryLimit": 0})
    stage.engine(new, restarts=1, **CRASHED)
    stage.settle()
    assert [name for name, _, _ in told(stage)] == [old]


def test_a_lost_status_begins_with_the_first_step_again() -> None:
    stage, old, new = begun()
    stage.later(300)
    stage.settle()
    stage.available(new)
    stage.settle()
    assert at(stage)[0] == 2
    stage.serve["status"] = {"observedGeneration": -1}
    stage.step()
    assert (stage.live(), stage.serve["status"]["live"]["name"]) == (old, old), "all traffic is the live one's meanwhile"
    stage.available(new)
    stage.settle()
    assert at(stage) == (1, 25, 20.0)


def test_a_pass_that_was_cut_off_before_its_status_goes_on() -> None:
    stage, _, new = begun()
    status = stage.serve["status"]
    stage.later(300)
    stage.step()
    stage.serve["status"] = status
    stage.settle()
    assert (at(stage), pods(stage, new)) == ((2, 25, 20.0), 4)


def test_an_operator_that_was_away_skips_no_step() -> None:
    stage, _, new = begun()
    stage.later(10**5)
    stage.settle()
    stage.available(new)
    stage.settle()
    assert at(stage) == (2, 50, 50.0)
    assert canary(stage)["since"] == stage.stamp()


def test_a_gate_that_is_gone_by_now_is_not_asked_again() -> None:
    stage, old, new = begun()
    for job in stage.of("Job"):
        del stage.objects["Job", job["metadata"]["name"]]
    stage.settle()
    assert (at(stage), stage.of("Job"), stage.revisions()) == ((1, 25, 20.0), [], {old, new})


def test_pods_that_somebody_took_away_come_back() -> None:
    stage, _, new = begun()
    del stage.objects["Deployment", stage.deployment(new)["metadata"]["name"]]
    stage.step()
    assert (pods(stage, new), at(stage)) == (1, (1, 25, 0))
    stage.step()
    assert (pods(stage, new), at(stage)) == (1, (1, 25, 0))


def test_a_service_that_somebody_deleted_comes_back_as_it_was() -> None:
    stage, old, new = begun()
    del stage.objects["Service", "facts"]
    stage.settle()
    assert (selector(stage), stage.serve["status"]["live"]["name"], stage.revisions()) == (WIDE, old, {old, new})


# ── by the route ──


@pytest.mark.parametrize(("replicas", "weight", "count"), [(4, 25, 1), (4, 26, 2), (7, 43, 4), (1, 1, 1), (3, 99, 3)])
def test_a_candidate_behind_a_route_has_pods_in_proportion(replicas: int, weight: int, count: int) -> None:
    stage, _, new = loaded([{"weight": weight, "pauseSeconds": 60}], route=ROUTE, replicas=replicas)
    assert stage.deployment(new)["spec"]["replicas"] == count


def test_a_step_that_takes_no_more_pods_is_told_as_well() -> None:
    stage, _, _ = begun([{"weight": 10, "pauseSeconds": 60}, {"weight": 20, "pauseSeconds": 60}], route=ROUTE)
    stage.later(61)
    stage.settle()
    assert at(stage) == (2, 20, 20)


@pytest.mark.parametrize("number", ["x", "-1", "1000", "2/3", " 2", ""])
def test_what_names_no_step_lets_nothing_through(number: str) -> None:
    stage, _, new = begun(BY_HAND)
    stage.annotate(ANNOTATION_PROMOTE, f"{new}/{number}")
    stage.settle()
    assert canary(stage)["step"] == 1


def test_weights_of_the_route_give_any_share() -> None:
    stage, old, new = begun([{"weight": 10, "pauseSeconds": 60}, {"weight": 90, "pauseSeconds": 60}], route=ROUTE)
    assert (at(stage), canary(stage)["by"], pods(stage, new)) == ((1, 10, 10), "Route", 1)
    assert backends(stage) == {"facts": 90, f"facts-{new}": 10}
    assert stage.live() == old, "the Service leads to the live revision alone"
    assert f"revision {new} takes 10 % of what comes through the HTTPRoute; step 1 of 2" in stage.message()
    stage.later(60)
    stage.settle()
    assert (backends(stage), pods(stage, new)) == ({"facts": 90, f"facts-{new}": 10}, 4)
    assert (reason(stage), stage.step().requeue_after) == ("Canary", 120), "what keeps its pods from being there is told"
    stage.available(new)
    stage.settle()
    assert (at(stage), backends(stage)) == ((2, 90, 90), {"facts": 10, f"facts-{new}": 90})
    stage.later(60)
    stage.settle()
    assert (stage.live(), backends(stage)) == (new, {"facts": 1})


def test_no_request_is_sent_where_nothing_answers() -> None:
    stage, old, new = begun(route=ROUTE)
    stage.available(new, 0)
    stage.settle()
    assert backends(stage) == {"facts": 1}
    stage.available(new)
    stage.available(old, 0)
    stage.settle()
    assert backends(stage) == {"facts": 0, f"facts-{new}": 100}
    assert f"takes 100 % of what comes through the HTTPRoute, as 0 of 4 pods of revision {old} are available" in stage.message()


def test_pods_whose_service_the_route_still_names_stay() -> None:
    stage, old, new = begun(route=ROUTE)
    stage.edit(model=make_serve()["spec"]["model"])
    route = stage.objects["HTTPRoute", "facts"]["spec"]
    stage.step()
    stage.objects["HTTPRoute", "facts"]["spec"] = route
    stage.step()
    assert stage.revisions() == {old, new}
    stage.settle()
    assert stage.revisions() == {old}


@pytest.mark.parametrize("why", ["not served", "not accepted"])
def test_without_a_route_that_works_pods_give_the_share(why: str) -> None:
    stage, old, _ = loaded(route=ROUTE)
    if why == "not served":
        stage.unserved = frozenset({"HTTPRoute"})
        del stage.objects["HTTPRoute", "facts"]
    else:
        accept(stage, "False", reason="NotAllowedByListeners", message="no")
    stage.finish_gate()
    stage.settle()
    assert (at(stage), canary(stage)["by"], selector(stage)) == ((1, 25, 20.0), "Replicas", WIDE)
    assert stage.serve["status"]["live"]["name"] == old


def test_a_route_that_works_later_gives_the_share_from_then_on() -> None:
    stage, _, new = loaded(route=ROUTE)
    accept(stage, "False", reason="NotAllowedByListeners", message="no")
    stage.finish_gate()
    stage.settle()
    accept(stage)
    stage.settle()
    assert (canary(stage)["by"], canary(stage)["share"]) == ("Route", 25)
    assert backends(stage) == {"facts": 75, f"facts-{new}": 25}


# ── where there is none ──


def test_the_first_revision_takes_all_at_once() -> None:
    stage = Stage(make_serve(replicas=4, rollout={"canary": {"steps": STEPS}}))
    assert pods(stage, stage.roll_out()) == 4


def test_what_somebody_pinned_takes_all_at_once() -> None:
    stage, old, new = begun([{"weight": 50, "pauseSeconds": 1}], rollout={"rollbackWindowSeconds": 0})
    stage.later(1)
    stage.settle()
    assert stage.live() == new
    stage.settle()
    stage.annotate(ANNOTATION_PIN, old)
    stage.settle()
    stage.available(old)
    stage.settle()
    assert (stage.live(), pods(stage, old), reason(stage)) == (old, 4, "Pinned")


def test_it_is_never_loaded_in_the_live_ones_place() -> None:
    stage, old, new = loaded(rollout={"maxDowntimeSeconds": 86400})
    waits = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes", "lastTransitionTime": stage.stamp()}
    stage.available(new, 0)
    stage.pod(new, conditions=[waits])
    stage.later(400)
    stage.settle()
    assert (pods(stage, old), reason(stage), standing(stage)) == (4, "Unschedulable", STALLED)
