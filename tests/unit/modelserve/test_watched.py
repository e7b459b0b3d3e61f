"""A rollback window whose engines' counters are watched by a Job: when there is one, and what follows from its end."""

from __future__ import annotations

from typing import Any

import pytest
from tests.serving import Stage, make_serve
from tests.unit.modelserve.test_rollout import SERVING, STALLED, is_available, reason, standing

from finetune_operator.meta import Object
from finetune_operator.names import LABEL_WATCH
from finetune_trainer.contract.reports import Failure
from finetune_trainer.contract.traffic import Bounds, Series, Traffic, Watch

VLLM = {"type": "VLLM"}
ERRORS = Failure(reason="TooManyErrors", message="9 of 60 requests ended with an error of the engine")
FOUND = Traffic(requests=60, errors=9, tokens=4000, token_milliseconds=21.5)


def promoted(engine: dict[str, Any], **on: Any) -> tuple[Stage, str, str]:
    """Two revisions, the second one just promoted."""
    stage = Stage(make_serve(engine=engine, rollout={"rollbackOn": on}))
    old, new = stage.promote_another()
    return stage, old, new


def signals(stage: Stage) -> list[str]:
    return list(stage.serve["status"]["rollbackWindow"]["signals"])


def watches(stage: Stage) -> list[Object]:
    return [o for kind in ("Job", "Service") for o in stage.of(kind) if LABEL_WATCH in o["metadata"]["labels"]]


def wanted(stage: Stage) -> Watch:
    (job,) = [o for o in watches(stage) if o["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return Watch.model_validate_json(container["command"][-1])


def test_errors_are_watched_where_the_engine_counts_them() -> None:
    stage, _, new = promoted(VLLM)
    assert signals(stage) == ["Restarts", "Probes", "Errors"]
    (service,) = [o for o in watches(stage) if o["kind"] == "Service"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == stage.objects["Service", "facts"]["spec"]["selector"]
    told = wanted(stage)
    assert (told.host, told.before, told.port) == (f"facts-{new}-pods.default.svc", None, 8000)
    assert 290 <= told.seconds <= 300
    assert told.bounds == Bounds(max_error_rate=0.05)
    status = {"handler": "/v1/.*", "method": "POST", "status": "5.."}
    assert told.counters.errors == Series(name="http_requests_total", labels=status)


@pytest.mark.parametrize(
    ("engine", "on", "watched"),
    [
        ({"type": "LlamaCpp"}, {}, []),
        (VLLM, {"maxErrorRate": 1}, []),
        ({"type": "LlamaCpp"}, {"maxSlowdown": 3}, ["Latency"]),
        (VLLM, {"maxSlowdown": 3}, ["Errors", "Latency"]),
    ],
)
def test_status_says_which_signals_are_in_use(engine: dict[str, Any], on: dict[str, Any], watched: list[str]) -> None:
    stage, old, new = promoted(engine, **on)
    assert signals(stage) == ["Restarts", "Probes", *watched]
    assert bool(watches(stage)) == bool(watched)
    if "Latency" in watched:
        assert wanted(stage).before == f"facts-{old}-pods.default.svc"
        assert {o["metadata"]["name"] for o in watches(stage) if o["kind"] == "Service"} == {
            f"facts-{old}-pods",
            f"facts-{new}-pods",
        }


def test_latency_is_not_compared_with_another_engine() -> None:
    stage = Stage(make_serve(engine={"type": "LlamaCpp"}, rollout={"rollbackOn": {"maxSlowdown": 2}}))
    stage.roll_out()
    stage.later(3600)
    stage.edit(engine=VLLM)
    stage.roll_out()
    assert signals(stage) == ["Restarts", "Probes", "Errors"]


def test_too_many_errors_take_traffic_back_and_are_remembered() -> None:
    stage, old, new = promoted(VLLM)
    stage.later(100)
    stage.finish_gate(ERRORS, traffic=FOUND)
    decision = stage.step()
    assert [(e.reason, e.warning) for e in decision.events if e.warning] == [("RevisionRolledBack", True)]
    stage.settle()
    assert (stage.live(), standing(stage), reason(stage), is_available(stage)) == (old, STALLED, "TooManyErrors", True)
    told = stage.serve["status"]["candidate"]
    assert (told["name"], told["traffic"]["errors"]) == (new, 9)
    assert "100 s after it took traffic, 9 of 60 requests" in stage.message()
    assert (stage.revisions(), watches(stage)) == ({old}, [])
    stage.serve["status"] = {"observedGeneration": -1}
    stage.settle()
    assert (stage.live(), reason(stage)) == (old, "TooManyErrors")


def test_a_watch_that_ends_with_its_window_leaves_its_numbers() -> None:
    stage, old, new = promoted(VLLM)
    stage.later(299)
    stage.finish_gate(traffic=Traffic(requests=12))
    stage.settle()
    assert (stage.live(), stage.revisions()) == (new, {old, new}), "too little traffic is no verdict"
    stage.later(1)
    stage.settle()
    assert (stage.live(), standing(stage), watches(stage)) == (new, SERVING, [])
    assert stage.serve["status"]["live"]["traffic"]["requests"] == 12


def test_a_watch_that_was_lost_is_no_verdict_and_no_signal() -> None:
    stage, old, new = promoted(VLLM)
    stage.lose_gate(None, "BackoffLimitExceeded")
    stage.settle()
    assert (stage.live(), stage.revisions(), signals(stage)) == (new, {old, new}, ["Restarts", "Probes"])
    assert [o["kind"] for o in watches(stage)] == ["Job"], "it is not begun again and again"


def test_the_same_revision_is_watched_anew_at_its_next_promotion() -> None:
    stage, _, new = promoted(VLLM)
    (first,) = [o["metadata"]["name"] for o in watches(stage) if o["kind"] == "Job"]
    stage.finish_gate(ERRORS)
    stage.settle()
    stage.later(3600)
    stage.annotate("finetune.dev/retry", "again")
    assert stage.roll_out() == new
    (again,) = [o["metadata"]["name"] for o in watches(stage) if o["kind"] == "Job"]
    assert again != first
