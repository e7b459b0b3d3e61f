"""Who has the last word on what serves: a person who promotes, pins or rolls back."""

from __future__ import annotations

import pytest
from tests.serving import SPEC, Stage, make_serve
from tests.unit.modelserve.test_contract import awaiting_promotion
from tests.unit.modelserve.test_rollout import SERVING, STALLED, WORKING, WRONG, reason, standing

from finetune_operator.names import ANNOTATION_PIN, ANNOTATION_PROMOTE, ANNOTATION_RETRY, ANNOTATION_ROLLBACK

NO_WINDOW = {"rollbackWindowSeconds": 0}


def two(**rollout: object) -> tuple[Stage, str, str]:
    """Two revisions were promoted, and the first one's pods are gone."""
    stage = Stage(make_serve(rollout={**NO_WINDOW, **rollout}))
    old, new = stage.promote_another()
    assert stage.revisions() == {new}
    stage.later(60)
    return stage, old, new


# ── promotion: Manual ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_revision_that_has_passed_waits_for_the_annotation() -> None:
    stage = awaiting_promotion()
    old, new = stage.live(), stage.candidate()
    assert (standing(stage), reason(stage)) == (WORKING, "AwaitingPromotion")
    assert f"kubectl annotate --overwrite mserve facts finetune.dev/promote={new}" in stage.message()
    assert stage.serve["status"]["candidate"]["state"] == "Passed"
    stage.annotate(ANNOTATION_PROMOTE, str(old))  # of another revision
    stage.settle()
    assert stage.live() == old
    stage.annotate(ANNOTATION_PROMOTE, new)
    decision = stage.step()
    assert [e.reason for e in decision.events] == ["RevisionLive"]
    assert stage.live() == new
    stage.settle()
    assert standing(stage) == SERVING


@pytest.mark.parametrize("value", ["{new}/", "{new}/all", "{new}/1000", "other"])
def test_an_annotation_that_names_no_step_promotes_nothing(value: str) -> None:
    stage = awaiting_promotion()
    old = stage.live()
    stage.annotate(ANNOTATION_PROMOTE, value.format(new=stage.candidate()))
    stage.settle()
    assert stage.live() == old


def test_that_it_waits_is_told_once() -> None:
    stage = Stage(make_serve(rollout={"promotion": "Manual"}))
    first = stage.roll_out()
    assert stage.live() == first, "the first revision replaces none, so nobody is asked"
    stage.edit(model={"uri": "pvc://models/next"})
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate()
    assert [e.reason for e in stage.step().events] == ["AwaitingPromotion"]
    assert list(stage.step().events) == []


def test_a_revision_that_was_refused_is_not_promoted_by_hand() -> None:
    stage = Stage(make_serve(rollout={"promotion": "Manual"}))
    old = stage.roll_out()
    stage.edit(model={"uri": "pvc://models/next"})
    stage.step()
    stage.annotate(ANNOTATION_PROMOTE, stage.candidate())
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate(WRONG)
    stage.settle()
    assert (stage.live(), standing(stage)) == (old, STALLED)


# ── Pins ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def pin_by_annotation(stage: Stage, revision: str) -> None:
    stage.annotate(ANNOTATION_PIN, revision)


def pin_by_field(stage: Stage, revision: str) -> None:
    stage.edit(rollout={**NO_WINDOW, "pinnedRevision": revision})


def roll_back(stage: Stage, _: str) -> None:
    stage.annotate(ANNOTATION_ROLLBACK, str(stage.live()))


@pytest.mark.parametrize("go_back", [pin_by_annotation, pin_by_field, roll_back])
def test_a_former_revision_is_loaded_as_it_was_and_takes_over_without_a_gate(go_back: object) -> None:
    stage, old, new = two()
    stage.edit(resources={"limits": {"memory": "9Gi"}})  # a third revision loads
    stage.edit(resources={})
    assert callable(go_back)
    go_back(stage, old)
    stage.step()
    assert (standing(stage), stage.live(), stage.revisions()) == (WORKING, new, {old, new})
    template = stage.deployment(old)["spec"]["template"]["spec"]
    assert "pvc://models/q4" in template["initContainers"][0]["command"]
    stage.available(old)
    stage.settle()
    assert (stage.live(), standing(stage), reason(stage)) == (old, SERVING, "Pinned")
    assert [h["name"] for h in stage.serve["status"]["history"]] == [old, new]
    live = stage.serve["status"]["live"]
    assert (live["modelUri"], live["modelDigest"]) == ("pvc://models/q4", SPEC["model"]["digest"])


def test_a_revision_that_is_still_warm_takes_over_at_once() -> None:
    stage = Stage()
    old, new = stage.promote_another()
    stage.later(30)
    roll_back(stage, new)
    stage.step()
    assert stage.live() == old
    stage.settle()
    assert reason(stage) == "Pinned"
    assert "finetune.dev/rollback" in stage.message()


def test_a_pin_holds_whatever_the_spec_asks_for_and_without_it_the_spec_counts() -> None:
    stage, old, new = two()
    pin_by_annotation(stage, new)
    stage.edit(model={"uri": "pvc://models/third"})
    stage.settle()
    assert (stage.live(), stage.revisions(), reason(stage)) == (new, {new}, "Pinned")
    assert old in [h["name"] for h in stage.serve["status"]["history"]]
    del stage.serve["metadata"]["annotations"][ANNOTATION_PIN]
    stage.step()
    assert (standing(stage), stage.live()) == (WORKING, new)
    assert stage.candidate() not in (old, new)


def test_the_pinned_revision_is_the_specs_own() -> None:
    stage, _, new = two()
    pin_by_annotation(stage, new)
    stage.settle()
    assert (stage.live(), reason(stage)) == (new, "Serving")


def test_a_rollback_ends_with_the_next_spec() -> None:
    stage, old, new = two()
    roll_back(stage, new)
    stage.step()
    stage.available(old)
    stage.settle()
    assert stage.live() == old
    stage.edit(model={"uri": "pvc://models/third"})
    third = stage.roll_out()
    assert (stage.live(), standing(stage)) == (third, SERVING)


@pytest.mark.parametrize(
    ("go_back", "by", "wish"),
    [
        (pin_by_annotation, f"the annotation {ANNOTATION_PIN}", "0123456789"),
        (pin_by_field, "spec.rollout.pinnedRevision", "0123456789"),
        (roll_back, f"the annotation {ANNOTATION_ROLLBACK}", "before this one"),
    ],
)
def test_what_is_not_remembered_changes_nothing(go_back: object, by: str, wish: str) -> None:
    stage = Stage()
    live = stage.roll_out()
    assert callable(go_back)
    go_back(stage, "0123456789")
    stage.settle()
    assert (stage.live(), stage.revisions(), standing(stage), reason(stage)) == (live, {live}, STALLED, "RevisionNotFound")
    assert f"{by} asks for the revision {wish}, which is not remembered; set one of: {live}" in stage.message()


def test_a_former_revision_that_can_not_load_any_more_is_refused() -> None:
    stage, old, new = two()
    pin_by_annotation(stage, old)
    stage.step()
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": stage.stamp()}}
    stage.pod(old, containerStatuses=[{"name": "engine", "restartCount": 1, "state": {}, "lastState": ended}])
    stage.settle()
    assert (stage.live(), standing(stage), reason(stage)) == (new, STALLED, "OutOfMemory")
    stage.annotate(ANNOTATION_RETRY, "1")
    stage.step()
    assert (standing(stage), stage.candidate()) == (WORKING, old)
