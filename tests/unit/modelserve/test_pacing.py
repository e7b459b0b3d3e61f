"""A default image that changed: who may load it now, who waits, and that nothing else waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.serving import SETTINGS, Stage, make_serve
from tests.unit.modelserve.test_rollout import OTHER, SERVING, WORKING, WRONG, is_available, reason, standing

from finetune_operator.cache import Own, has_turn
from finetune_operator.meta import Key, Object


def upgraded(paced: tuple[str, ...], serve: Object | None = None, **settings: Any) -> tuple[Stage, str]:
    """A live revision, and an operator that has other settings now."""
    stage = Stage(serve)
    live = stage.roll_out()
    stage.later(3600)
    stage.settings = replace(SETTINGS, **(settings or {"llamacpp_image": "llama:next"}))
    stage.paced = paced
    return stage, live


@pytest.mark.parametrize("settings", [{"llamacpp_image": "llama:next"}, {"image_pull_policy": "Always"}])
def test_a_changed_default_waits_for_its_turn_and_the_live_one_serves(settings: dict[str, Any]) -> None:
    stage, live = upgraded(("elsewhere",), **settings)
    decision = stage.settle()
    assert (standing(stage), reason(stage), is_available(stage)) == (WORKING, "AwaitingTurn", True)
    assert (stage.live(), stage.revisions(), decision.requeue_after) == (live, {live}, 15)
    stage.paced = ()
    stage.step()
    new = stage.candidate()
    assert has_turn(stage.serve["status"])
    stage.paced = ("elsewhere",)
    stage.available(new)
    stage.step()
    stage.finish_gate()
    stage.settle()
    assert (stage.live(), standing(stage), has_turn(stage.serve["status"])) == (new, SERVING, False), "what has begun goes on"


@pytest.mark.parametrize("lost", ["status", "Deployment"])
def test_what_has_begun_goes_on_though_the_status_or_its_deployment_is_lost(lost: str) -> None:
    stage, live = upgraded(())
    stage.step()
    new = stage.candidate()
    stage.paced = ("elsewhere",)
    if lost == "status":
        stage.serve["status"] = {"observedGeneration": -1}
    else:
        del stage.objects["Deployment", f"facts-{new}"]
    stage.settle()
    assert (reason(stage), stage.revisions()) == ("Loading", {live, new})


@pytest.mark.parametrize(
    ("paced", "at_once", "begins"),
    [
        ((), 1, True),
        (("elsewhere",), 2, True),
        (("default",), 2, False),
        (("a", "b"), 2, False),
        (("a", "b", "default"), 0, True),
    ],
)
def test_so_many_in_the_cluster_and_one_in_a_namespace(paced: tuple[str, ...], at_once: int, begins: bool) -> None:
    stage, live = upgraded(paced, llamacpp_image="llama:next", rollouts_at_once=at_once)
    stage.step()
    assert (stage.revisions() != {live}) is begins


@pytest.mark.parametrize("change", [{"model": OTHER}, {"servedName": "other"}, {"resources": {"requests": {"cpu": "2"}}}])
def test_what_somebody_asks_for_waits_for_no_turn(change: dict[str, Any]) -> None:
    stage, live = upgraded(("default",))
    stage.edit(**change)
    stage.step()
    assert stage.revisions() != {live}
    assert not has_turn(stage.serve["status"])


def test_an_image_of_its_own_is_no_default() -> None:
    stage, live = upgraded(("default",), make_serve(engine={"type": "LlamaCpp", "image": "mine:1"}))
    stage.settle()
    assert (stage.live(), standing(stage)) == (live, SERVING)
    stage.edit(engine={"type": "LlamaCpp", "image": "mine:2"})
    stage.step()
    assert stage.revisions() != {live}


def test_a_refusal_ends_the_turn_and_waits_for_none() -> None:
    stage, live = upgraded(())
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate(WRONG)
    stage.settle()
    assert (stage.live(), reason(stage), has_turn(stage.serve["status"])) == (live, "GateFailed", False)


def test_who_needs_a_person_holds_up_no_other() -> None:
    candidate = {"name": "b", "state": "Loading", "paced": True}
    assert has_turn({"candidate": candidate})
    assert not has_turn({"candidate": candidate, "conditions": [{"type": "Stalled", "status": "True"}]})
    assert not has_turn({"candidate": {**candidate, "paced": None}})
    waits = {"type": "Ready", "status": "False", "reason": "AwaitingPromotion"}
    assert not has_turn({"candidate": candidate, "conditions": [waits]})


def test_two_passes_side_by_side_do_not_take_the_same_turn() -> None:
    own = Own()
    one, two = (Key("ModelServe", space, "bot") for space in ("a", "b"))
    own.take_turn(one)
    assert (own.paced(one), own.paced(two)) == ((), ("a",))
    meta = {"name": "bot", "namespace": "a", "uid": "u", "resourceVersion": "1"}
    own.keep({"kind": "ModelServe", "metadata": meta, "spec": {}, "status": {"candidate": {"state": "Loading", "paced": True}}})
    assert own.paced(two) == ("a",)
    own.keep({"kind": "ModelServe", "metadata": {**meta, "resourceVersion": "2"}, "spec": {}, "status": {}})
    assert own.paced(two) == ()
