"""Surge, Recreate and Auto: where a new revision loads, what is told of it, and that nothing waits in vain or stops unasked."""

from __future__ import annotations

from typing import Any

import pytest
from tests.serving import Stage, make_serve
from tests.unit.modelserve.test_loading import UNSCHEDULABLE
from tests.unit.modelserve.test_rollout import SERVING, STALLED, WORKING, WRONG, is_available, reason, standing

TOOK = 90  # seconds that the live revision took to load


def another(**rollout: Any) -> tuple[Stage, str, str]:
    """A live revision, and another that was asked for just now."""
    stage = Stage(make_serve(rollout=rollout))
    live = stage.roll_out()
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stage.stamp()}
    stage.later(TOOK)
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": stage.stamp()}
    stage.pod(live, phase="Running", conditions=[placed, ready])
    stage.edit(model={"uri": "pvc://models/next"})
    stage.step()
    return stage, live, stage.candidate()


def replicas(stage: Stage, revision: str) -> int:
    return int(stage.deployment(revision)["spec"]["replicas"])


def find_no_room(stage: Stage, candidate: str, seconds: float = 300) -> None:
    stage.pod(candidate, conditions=[UNSCHEDULABLE])
    stage.later(seconds)
    stage.step()


def stop_live(stage: Stage, live: str) -> None:
    """The Deployment controller has taken its pods away."""
    stage.objects.pop(("Pod", f"pod-{live}"), None)
    stage.available(live, 0)


def test_recreate_says_before_how_long_nothing_will_answer() -> None:
    stage = Stage(make_serve(rollout={"strategy": "Recreate"}))
    live = stage.roll_out()
    assert stage.revisions() == {live}
    stage.edit(model={"uri": "pvc://models/next"})
    decision = stage.step()
    new = stage.candidate()
    assert decision.intent is True, "the status is written before the live one is stopped"
    assert [(e.reason, e.warning) for e in decision.events] == [("RevisionLoading", False), ("Recreating", True)]
    assert "nothing answers for up to 3600 s" in decision.events[1].message
    assert (replicas(stage, live), replicas(stage, new)) == (0, 1)
    stop_live(stage, live)
    decision = stage.step()
    assert (decision.intent, list(decision.events)) == (False, []), "it is told once"
    assert stage.conditions()["Available"] == ("False", "Recreating")
    stage.available(new)
    stage.step()
    assert (reason(stage), replicas(stage, live)) == ("Gating", 0)
    stage.finish_gate()
    stage.settle()
    assert (stage.live(), stage.revisions(), standing(stage)) == (new, {new}, SERVING)
    assert "rollbackWindow" not in stage.serve["status"], "there was no room for a warm one"
    assert "strategyMessage" not in stage.serve["status"]["live"]


def test_the_live_revisions_own_load_time_foretells_the_outage() -> None:
    stage, live, _ = another(strategy="Recreate")
    assert f"nothing answers for about {TOOK} s" in stage.message()
    stop_live(stage, live)
    stage.settle()
    assert f"nothing answers for about {TOOK} s" in stage.message(), "its pods are gone, and what they told stays true"


def test_a_pod_that_is_not_ready_tells_nothing_of_how_long_loading_takes() -> None:
    stage, live, _ = another()
    labels = stage.deployment(live)["spec"]["template"]["metadata"]["labels"]
    again = {"kind": "Pod", "metadata": {"name": "again", "labels": labels, "creationTimestamp": stage.stamp()}}
    stage.put(again | {"status": {"phase": "Pending"}})
    stage.edit(rollout={"strategy": "Recreate"})
    stage.step()
    assert f"nothing answers for about {TOOK} s" in stage.message()


def test_where_no_pod_tells_how_long_loading_takes_the_remedy_names_the_whole_budget() -> None:
    stage = Stage(make_serve(rollout={"startupTimeoutSeconds": 60}))
    stage.roll_out()
    stage.edit(model={"uri": "pvc://models/next"})
    stage.step()
    find_no_room(stage, stage.candidate())
    assert "maxDowntimeSeconds of 1860 or more" in stage.message(), "1800 s to load a model of unknown size, 60 s to start"


def test_a_spec_that_asks_for_surge_again_brings_the_stopped_one_back() -> None:
    stage, live, new = another(strategy="Recreate")
    stop_live(stage, live)
    stage.edit(rollout={"strategy": "Surge"})
    stage.settle()
    assert (replicas(stage, live), replicas(stage, new)) == (1, 1)


def test_the_old_revision_comes_back_where_the_one_in_its_place_is_refused() -> None:
    stage, live, new = another(strategy="Recreate")
    stop_live(stage, live)
    stage.available(new)
    stage.step()
    stage.finish_gate(WRONG)
    stage.settle()
    assert (stage.live(), replicas(stage, live), stage.revisions()) == (live, 1, {live})
    assert (standing(stage), is_available(stage)) == (STALLED, False)
    stage.available(live)
    stage.settle()
    assert is_available(stage)


@pytest.mark.parametrize("strategy", ["Auto", "Surge"])
def test_without_room_nothing_is_stopped_that_nobody_allowed(strategy: str) -> None:
    stage, live, new = another(strategy=strategy)
    find_no_room(stage, new, 299)
    assert (standing(stage), reason(stage)) == (WORKING, "Unschedulable"), "an autoscaler may add a node"
    stage.later(1)
    stage.settle()
    assert (standing(stage), reason(stage)) == (STALLED, "Unschedulable")
    assert (replicas(stage, live), is_available(stage), stage.revisions()) == (1, True, {live, new})
    assert "no GPU" in stage.message()
    assert f"Auto with maxDowntimeSeconds of {TOOK} or more" in stage.message()
    assert f"then nothing answers for about {TOOK} s" in stage.message()
    assert stage.serve["status"]["candidate"]["strategy"] == "Surge"
    del stage.objects["Pod", f"pod-{new}"]
    stage.available(new)
    stage.step()
    assert reason(stage) == "Gating", "it goes on by itself once there is room"


def test_auto_takes_the_live_ones_place_where_the_spec_bears_that() -> None:
    stage, live, new = another(maxDowntimeSeconds=TOOK)
    find_no_room(stage, new)
    assert replicas(stage, live) == 0
    candidate = stage.serve["status"]["candidate"]
    assert candidate["strategy"] == "Recreate"
    assert "as no node has room for both" in candidate["strategyMessage"]
    del stage.objects["Pod", f"pod-{new}"]  # it was placed, and loads
    stop_live(stage, live)
    stage.settle()
    assert replicas(stage, live) == 0, "what was begun goes on"
    stage.available(new)
    stage.step()
    stage.finish_gate()
    stage.settle()
    assert (stage.live(), stage.revisions()) == (new, {new})


def test_a_lost_status_does_not_bring_the_stopped_one_back_in_between() -> None:
    stage, live, new = another(maxDowntimeSeconds=TOOK)
    find_no_room(stage, new)
    del stage.objects["Pod", f"pod-{new}"]
    stop_live(stage, live)
    stage.serve["status"] = {"observedGeneration": -1}
    stage.settle()
    assert (replicas(stage, live), replicas(stage, new)) == (0, 1)


@pytest.mark.parametrize("rollout", [{"maxDowntimeSeconds": TOOK - 1}, {"maxDowntimeSeconds": 9999, "promotion": "Manual"}])
def test_auto_stops_nothing_for_longer_than_is_borne(rollout: Any) -> None:
    stage, live, new = another(**rollout)
    find_no_room(stage, new)
    assert (replicas(stage, live), standing(stage)) == (1, STALLED)


def test_a_spec_that_moves_on_brings_the_stopped_one_back() -> None:
    stage, live, new = another(maxDowntimeSeconds=TOOK)
    find_no_room(stage, new)
    stop_live(stage, live)
    stage.edit(model={"uri": "pvc://models/third"})
    stage.settle()
    assert replicas(stage, live) == 1
    assert new not in stage.revisions()


def test_beside_a_live_one_with_room_no_outage_is_told() -> None:
    stage, live, _ = another()
    assert stage.serve["status"]["candidate"]["strategy"] == "Surge"
    assert f"beside revision {live}, which goes on serving" in stage.message()


def test_what_was_begun_by_a_release_that_told_no_reason_goes_on_in_the_live_ones_place() -> None:
    stage, live, new = another(strategy="Auto", maxDowntimeSeconds=TOOK)
    find_no_room(stage, new)
    del stage.serve["status"]["candidate"]["strategyMessage"]
    stage.deployment(live)["spec"]["replicas"] = 1  # the write that stops it was lost
    stage.later(1)
    stage.pod(new)  # of which nothing is said yet
    stage.step()
    assert stage.serve["status"]["candidate"]["strategy"] == "Recreate"
    assert replicas(stage, live) == 0
