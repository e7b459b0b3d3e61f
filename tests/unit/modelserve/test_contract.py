"""The status contract of a ModelServe, row by row: what kstatus (Flux), `kubectl wait` and an alert on Available make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.serving import Stage, make_serve

from finetune_operator.meta import Object
from finetune_operator.names import ANNOTATION_PIN
from finetune_trainer.contract.reports import Failure


def kstatus(body: Object) -> str:
    """The rules of cli-utils for an object of a kind that it doesn't know, in their order."""
    if "deletionTimestamp" in body["metadata"]:
        return "Terminating"
    status = body.get("status", {})
    if "observedGeneration" in status and status["observedGeneration"] != body["metadata"]["generation"]:
        return "InProgress"
    conditions = status.get("conditions", [])
    for condition in conditions:
        if condition["status"] == "True" and condition["type"] in ("Reconciling", "Stalled"):
            return "InProgress" if condition["type"] == "Reconciling" else "Failed"
    ready = [c["status"] for c in conditions if c["type"] == "Ready"]
    return "InProgress" if ready and ready[0] != "True" else "Current"


def just_created() -> Stage:
    return Stage()


def loading() -> Stage:
    stage = Stage()
    stage.step()
    return stage


def gating() -> Stage:
    stage = loading()
    stage.available(stage.candidate())
    stage.step()
    return stage


def serving() -> Stage:
    stage = Stage()
    stage.roll_out()
    return stage


def edited_but_not_seen() -> Stage:
    stage = serving()
    stage.edit(replicas=2)
    return stage


def rolling() -> Stage:
    stage = serving()
    stage.edit(model={"uri": "pvc://models/next"})
    stage.step()
    return stage


def refused_beside_live() -> Stage:
    stage = rolling()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate(Failure(reason="GateFailed", message="wrong"))
    stage.settle()
    return stage


def refused_alone() -> Stage:
    stage = gating()
    stage.finish_gate(Failure(reason="GateFailed", message="wrong"))
    stage.settle()
    return stage


def some_pods_lost() -> Stage:
    stage = Stage(make_serve(replicas=2))
    live = stage.roll_out()
    stage.available(live, 1)
    stage.step()
    return stage


def suspended() -> Stage:
    stage = serving()
    stage.edit(suspend=True)
    stage.step()
    return stage


def scaled_to_zero() -> Stage:
    stage = serving()
    stage.edit(replicas=0)
    stage.step()
    return stage


def idle(gateways: int = 1) -> Stage:
    stage = Stage(make_serve(autoscaling={"minReplicas": 0, "maxReplicas": 1}))
    stage.roll_out()
    stage.gateway()
    stage.settle()
    stage.look_ends()
    stage.settle()
    stage.available(str(stage.serve["status"]["live"]["name"]))
    stage.gateway(gateways)
    stage.settle()
    return stage


def asleep() -> Stage:
    return idle()


def asleep_without_a_gateway() -> Stage:
    return idle(gateways=0)


def woken() -> Stage:
    stage = idle()
    stage.look_ends()
    stage.settle()
    return stage


def awaiting_promotion() -> Stage:
    stage = Stage(make_serve(rollout={"promotion": "Manual"}))
    stage.roll_out()
    stage.edit(model={"uri": "pvc://models/next"})
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate()
    stage.settle()
    return stage


def canary(**rollout: Any) -> Stage:
    stage = Stage(make_serve(rollout={"canary": {"steps": [{"weight": 50, **rollout}]}}))
    stage.roll_out()
    stage.edit(model={"uri": "pvc://models/next"})
    stage.roll_out_canary()
    return stage


def sharing() -> Stage:
    return canary(pauseSeconds=60)


def sharing_until_somebody_comes() -> Stage:
    return canary()


def share_taken_back() -> Stage:
    stage = sharing()
    stage.engine(stage.candidate(), restarts=1, exitCode=139, reason="Error")
    stage.settle()
    return stage


def in_window() -> Stage:
    stage = Stage()
    stage.promote_another()
    return stage


def rolled_back() -> Stage:
    stage = in_window()
    stage.engine(str(stage.live()), restarts=1, exitCode=139, reason="Error")
    stage.settle()
    return stage


def pinned() -> Stage:
    stage = serving()
    stage.annotate(ANNOTATION_PIN, str(stage.live()))
    stage.edit(model={"uri": "pvc://models/next"})
    stage.settle()
    return stage


def pinned_to_nothing() -> Stage:
    stage = serving()
    stage.annotate(ANNOTATION_PIN, "0123456789")
    stage.settle()
    return stage


def without_its_job() -> Stage:
    stage = Stage(make_serve(model={"jobRef": {"name": "gone"}}))
    stage.step()
    return stage


ROWS = [
    # situation, kstatus, `kubectl wait --for=condition=Ready`, Available
    (just_created, "InProgress", "waits", None),
    (loading, "InProgress", "waits", False),
    (gating, "InProgress", "waits", False),
    (serving, "Current", "met", True),
    (edited_but_not_seen, "InProgress", "waits", True),
    (rolling, "InProgress", "waits", True),
    (refused_beside_live, "Failed", "waits", True),
    (refused_alone, "Failed", "waits", False),
    (some_pods_lost, "InProgress", "waits", True),
    (suspended, "Current", "met", False),
    (scaled_to_zero, "Current", "met", False),
    (asleep, "Current", "met", True),
    (asleep_without_a_gateway, "Current", "met", False),
    (woken, "InProgress", "waits", True),
    (awaiting_promotion, "InProgress", "waits", True),
    (sharing, "InProgress", "waits", True),
    (sharing_until_somebody_comes, "InProgress", "waits", True),
    (share_taken_back, "Failed", "waits", True),
    (in_window, "Current", "met", True),
    (rolled_back, "Failed", "waits", True),
    (pinned, "Current", "met", True),
    (pinned_to_nothing, "Failed", "waits", True),
    (without_its_job, "Failed", "waits", False),
]


@pytest.mark.parametrize(("situation", "verdict", "wait", "available"), ROWS, ids=lambda v: getattr(v, "__name__", ""))
def test_row(situation: Callable[[], Stage], verdict: str, wait: str, available: bool | None) -> None:
    body = situation().serve
    assert kstatus(body) == verdict
    conditions = {c["type"]: c for c in body["status"].get("conditions", [])}
    ready = conditions.get("Ready", {"status": "Unknown", "observedGeneration": -1})
    current = ready["observedGeneration"] >= body["metadata"]["generation"]
    assert ("met" if current and ready["status"] == "True" else "waits") == wait
    assert ("Available" in conditions) == (available is not None)
    if available is not None:
        assert conditions["Available"]["status"] == str(available)
    # A condition that does not hold is absent, and both at once would say nothing.
    assert {c["status"] for k, c in conditions.items() if k in ("Reconciling", "Stalled")} <= {"True"}
    assert not {"Reconciling", "Stalled"} <= set(conditions)


def test_transition_time_moves_only_with_the_status() -> None:
    stage = Stage()
    stage.step()
    created = stage.stamp()
    stage.later(60)
    stage.available(stage.candidate())
    stage.step()  # Loading → Gating: Ready is False as before
    times = {c["type"]: c["lastTransitionTime"] for c in stage.serve["status"]["conditions"]}
    assert times["Ready"] == created
    stage.finish_gate()
    stage.step()
    times = {c["type"]: c["lastTransitionTime"] for c in stage.serve["status"]["conditions"]}
    assert times["Ready"] == stage.stamp() != created
