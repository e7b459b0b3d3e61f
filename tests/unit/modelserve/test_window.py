"""The rollback window: what keeps the old revision, what sends traffic back to it, and what is no verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.serving import Stage, make_serve
from tests.unit.modelserve.test_contract import kstatus
from tests.unit.modelserve.test_rollout import SERVING, STALLED, is_available, reason, standing

from finetune_operator.names import ANNOTATION_HISTORY, ANNOTATION_RETRY

CRASHED: dict[str, Any] = {"exitCode": 139, "reason": "Error"}


def promoted(**rollout: Any) -> tuple[Stage, str, str]:
    stage = Stage(make_serve(rollout=rollout))
    return stage, *stage.promote_another()


def notes(stage: Stage) -> dict[str, str]:
    found: dict[str, str] = stage.objects["Service", "facts"]["metadata"]["annotations"]
    return found


def told(stage: Stage) -> list[tuple[str, str, str | None]]:
    """What the Service's annotation tells: revision, when it was promoted, why it was left."""
    promotions = json.loads(notes(stage)[ANNOTATION_HISTORY])
    return [(p["revision"], p["promotedAt"], p.get("rolledBack", {}).get("reason")) for p in promotions]


def test_the_old_revision_stays_warm_until_its_window_ends() -> None:
    stage, old, new = promoted(rollbackWindowSeconds=120)
    before = stage.deployment(old)["spec"]
    decision = stage.settle()
    assert (stage.live(), stage.revisions(), standing(stage)) == (new, {old, new}, SERVING)
    assert stage.deployment(old)["spec"] == before
    assert decision.requeue_after == 120
    until = {"revision": old, "until": "2026-11-23T16:02:00Z", "signals": ["Restarts", "Probes"]}
    assert stage.serve["status"]["rollbackWindow"] == until
    assert f"revision {old} stays warm until 2026-11-23T16:02:00Z" in stage.message()
    stage.later(120)
    stage.settle()
    assert (stage.revisions(), standing(stage)) == ({new}, SERVING)
    assert "rollbackWindow" not in stage.serve["status"]
    assert {name for kind, name in stage.objects if kind == "Service"} == {"facts", f"facts-{new}"}


def test_the_status_that_tells_of_a_promotion_tells_of_its_window() -> None:
    stage = Stage(make_serve(rollout={"rollbackWindowSeconds": 120}))
    old = stage.roll_out()
    stage.edit(model={"uri": "pvc://models/other"})
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate()
    decision = stage.step()
    status = stage.serve["status"]
    assert status["live"]["name"] == stage.live() != old
    assert (status["rollbackWindow"]["revision"], decision.requeue_after) == (old, 120)
    assert f"revision {old} stays warm" in stage.message()
    after = stage.step()
    assert not after.actions
    assert stage.serve["status"] == status, "a pass that sees nothing else says nothing else"


def test_pods_that_are_no_more_are_no_way_back() -> None:
    stage, old, _ = promoted()
    stage.deployment(old)["spec"]["replicas"] = 0
    stage.step()
    assert "rollbackWindow" not in stage.serve["status"]


def test_without_a_window_the_old_revision_goes_at_once() -> None:
    stage, _, new = promoted(rollbackWindowSeconds=0)
    assert stage.revisions() == {new}


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "a crash": (CRASHED, {"ready": True}, "EngineRestarted", "exit code 139 (Error), 1 restarts"),
    "out of memory": ({"exitCode": 137, "reason": "OOMKilled"}, {}, "OutOfMemory", "exit code 137 (OOMKilled)"),
    "killed by its liveness probe": ({"exitCode": 0, "reason": "Completed"}, {}, "EngineRestarted", "exit code 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_engine_that_ends_sends_traffic_back(case: str) -> None:
    ended, pod, why, numbers = BAD[case]
    stage, old, new = promoted()
    stage.later(42)
    stage.engine(new, restarts=1, **pod, **ended)
    decision = stage.step()
    assert (stage.live(), next((e.reason, e.warning) for e in decision.events)) == (old, ("RevisionRolledBack", True))
    assert stage.revisions() == {old, new}, "the pods that still answer stay until the move is seen"
    stage.settle()
    assert (stage.live(), stage.revisions(), standing(stage), reason(stage)) == (old, {old}, STALLED, why)
    assert (is_available(stage), kstatus(stage.serve)) == (True, "Failed")
    assert f"revision {new} was rolled back, and revision {old} serves again: 42 s after it took traffic" in stage.message()
    assert numbers in stage.message()
    candidate = stage.serve["status"]["candidate"]
    assert (candidate["name"], candidate["state"], candidate["rolledBackAt"]) == (new, "Refused", "2026-11-23T16:00:42Z")
    noted = json.loads(notes(stage)[ANNOTATION_HISTORY])[1]["rolledBack"]
    assert noted == {k: candidate[k] for k in ("trial", "reason", "message")} | {"at": candidate["rolledBackAt"]}


def test_a_failing_probe_sends_traffic_back_after_its_time() -> None:
    stage, old, new = promoted()
    stage.later(10)
    stage.engine(new, ready=False)
    stage.available(new, 0)
    assert stage.settle().requeue_after == 30
    assert stage.live() == new
    stage.later(29)
    assert stage.step().requeue_after == 1
    stage.later(1)
    stage.settle()
    assert (stage.live(), reason(stage)) == (old, "ProbesFailed")
    assert "1 of 1 pods that had started have not been ready for 30 s" in stage.message()


def test_a_pod_that_can_not_load_again_sends_traffic_back() -> None:
    stage, old, new = promoted()
    report = json.dumps({"failure": {"reason": "ModelDamaged", "message": "q4.gguf was changed"}})
    ended = {"terminated": {"exitCode": 24, "reason": "Error", "message": report, "finishedAt": stage.stamp()}}
    stage.pod(new, initContainerStatuses=[{"name": "load", "restartCount": 1, "state": {}, "lastState": ended}])
    stage.available(new, 0)
    stage.settle()
    assert (stage.live(), reason(stage)) == (old, "ModelDamaged")


def test_what_was_rolled_back_is_not_tried_again_for_a_retry_that_was_asked_for_before() -> None:
    stage, old, new = promoted()
    stage.annotate(ANNOTATION_RETRY, "1")
    stage.settle()
    stage.engine(new, restarts=1, **CRASHED)
    stage.settle()
    assert (stage.live(), stage.revisions(), standing(stage)) == (old, {old}, STALLED)


def borne(stage: Stage, revision: str) -> None:
    stage.engine(revision, restarts=1, **CRASHED)


def crashed_before(stage: Stage, revision: str) -> None:
    stage.engine(revision, restarts=2, **CRASHED, finishedAt="2026-11-23T15:59:00Z")


def deleted(stage: Stage, revision: str) -> None:
    stage.pod(revision)  # another in its place, which loads
    stage.available(revision, 0)
    stage.later(200)


def short(stage: Stage, revision: str) -> None:
    stage.engine(revision, ready=False)
    stage.later(29)


def vanished(stage: Stage, revision: str) -> None:
    del stage.objects["Deployment", stage.deployment(revision)["metadata"]["name"]]


def steady(stage: Stage, revision: str) -> None:
    stage.engine(revision)
    stage.later(200)


def unprobed(stage: Stage, revision: str) -> None:
    stage.engine(revision)
    stage.objects["Pod", f"pod-{revision}"]["status"]["conditions"] = []
    stage.later(200)


@pytest.mark.parametrize(
    ("happens", "rollout"),
    [
        (borne, {"rollbackOn": {"maxRestarts": 1}}),
        (crashed_before, {}),
        (deleted, {}),
        (short, {}),
        (steady, {}),
        (vanished, {}),
        (unprobed, {}),
    ],
)
def test_no_verdict(happens: Any, rollout: Any) -> None:
    stage, old, new = promoted(**rollout)
    happens(stage, new)
    stage.settle()
    assert (stage.live(), stage.revisions()) == (new, {old, new})


def test_after_its_window_a_crash_sends_nothing_back() -> None:
    stage, _, new = promoted()
    stage.later(300)
    stage.engine(new, restarts=1, **CRASHED)
    stage.settle()
    assert (stage.live(), stage.revisions()) == (new, {new})


def test_traffic_never_goes_to_pods_that_do_not_answer() -> None:
    stage, old, new = promoted()
    stage.available(old, 0)
    stage.engine(new, ready=False)
    stage.later(30)
    assert stage.settle().requeue_after == 270, "it is no reason to look without a pause"
    stage.later(30)
    assert stage.settle().requeue_after == 240
    assert stage.live() == new
    stage.available(old)
    stage.settle()
    assert stage.live() == old


def rolled_back() -> tuple[Stage, str, str]:
    stage, old, new = promoted()
    stage.engine(new, restarts=1, **CRASHED)
    stage.settle()
    assert stage.live() == old
    return stage, old, new


def test_what_was_rolled_back_is_not_tried_again() -> None:
    stage, old, new = rolled_back()
    stage.later(7200)
    assert stage.step().actions == ()
    stage.serve["status"] = {"observedGeneration": -1}  # as when Git replaces the object
    stage.settle()
    assert (stage.live(), stage.revisions(), reason(stage)) == (old, {old}, "EngineRestarted")
    stage.edit(model={"uri": "pvc://models/q4", "digest": "sha256:" + "a" * 64})
    stage.settle()
    assert standing(stage) == SERVING
    stage.edit(model={"uri": "pvc://models/other"})
    stage.settle()
    assert (stage.live(), stage.revisions(), reason(stage)) == (old, {old}, "EngineRestarted")
    assert stage.candidate() == new


def test_the_retry_annotation_tries_it_again() -> None:
    stage, old, new = rolled_back()
    stage.annotate(ANNOTATION_RETRY, "1")
    stage.later(60)
    assert stage.roll_out() == new
    assert standing(stage) == SERVING
    assert told(stage) == [(new, "2026-11-23T16:01:00Z", None), (old, "2026-11-23T16:00:00Z", None)]
    stage.engine(new)
    stage.settle()
    assert stage.revisions() == {old, new}, "its window is open anew"


def test_a_crash_between_the_service_and_the_status_tries_nothing_again() -> None:
    stage, old, new = promoted()
    status = stage.serve["status"]
    stage.engine(new, restarts=1, **CRASHED)
    stage.step()
    assert told(stage) == [(old, "2026-11-23T16:00:00Z", None), (new, "2026-11-23T16:00:00Z", "EngineRestarted")]
    stage.serve["status"] = status
    decision = stage.step()
    assert "RevisionRolledBack" in {e.reason for e in decision.events}
    stage.settle()
    assert (stage.live(), stage.revisions(), reason(stage)) == (old, {old}, "EngineRestarted")


def test_a_status_that_is_lost_in_the_window_loses_no_way_back() -> None:
    stage, old, new = promoted()
    stage.serve["status"] = {"observedGeneration": -1}
    stage.settle()
    assert stage.serve["status"]["rollbackWindow"]["revision"] == old
    stage.engine(new, restarts=1, **CRASHED)
    stage.settle()
    assert stage.live() == old


def test_a_new_spec_closes_the_window() -> None:
    stage, old, new = promoted()
    stage.edit(model={"uri": "pvc://models/third"})
    stage.settle()
    assert stage.revisions() == {new, stage.candidate()}
    assert old not in stage.revisions()


def test_an_upgrade_opens_no_window_and_restarts_no_pod() -> None:
    stage, old, new = promoted(rollbackWindowSeconds=0)
    stage.objects["Service", "facts"]["metadata"].pop("annotations")  # as an earlier release left it
    stage.serve["status"]["live"].pop("promotedAt")
    before = dict(stage.deployment(new))
    stage.edit(rollout={})
    stage.settle()
    assert (stage.revisions(), stage.deployment(new)) == ({new}, before)
    assert "rollbackWindow" not in stage.serve["status"]
    assert told(stage) == [(new, "2026-11-23T16:00:00Z", None)]
    assert old not in stage.revisions()


@pytest.mark.parametrize("text", ["{", '[{"revision": "r", "promotedAt": "yesterday"}]', "[1]"])
def test_notes_that_somebody_wrote_over_are_passed_over(text: str) -> None:
    stage, _, new = promoted()
    notes(stage)[ANNOTATION_HISTORY] = text
    stage.settle()
    assert (stage.live(), stage.revisions()) == (new, {new})


def test_as_many_records_are_kept_as_asked_for() -> None:
    stage = Stage(make_serve(rollout={"revisionHistoryLimit": 1, "rollbackWindowSeconds": 0}))
    seen = []
    for number in range(4):
        stage.edit(model={"uri": f"pvc://models/{number}"})
        seen.append(stage.roll_out())
        stage.later(60)
    stage.settle()
    kept = {name.removeprefix("facts-") for kind, name in stage.objects if kind == "ControllerRevision"}
    assert kept == set(seen[-2:])
