"""A candidate that is compared with the live revision: what the gate is told, and what follows from its answer."""

from __future__ import annotations

from typing import Any

import pytest
from tests.serving import Stage, make_finished_job, make_serve
from tests.unit.modelserve.test_loading import UNSCHEDULABLE
from tests.unit.modelserve.test_rollout import SERVING, STALLED, is_available, reason, standing

from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.api.rules.modelserve import broken_by
from finetune_operator.meta import Object
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.held_out import HeldOut, HeldOutScores, Live
from finetune_trainer.contract.judging import Judged
from finetune_trainer.contract.reports import Failure

EVALUATION = "pvc://models/job/evaluate/" + "e" * 20
MODEL = {"uri": "pvc://models/one", "evaluation": EVALUATION}
OTHER = {"uri": "pvc://models/two", "evaluation": EVALUATION}
WORSE = Failure(reason="WorseThanLive", message="f1 is 0.6 on 80 test rows that revision a1 answers with 0.8")
SCORES = HeldOutScores(against="a1", metric="f1", rows=80, score=0.6, live_score=0.8)


def another(**rollout: Any) -> tuple[Stage, str, str]:
    """A live revision, and another that has loaded and is asked its gate."""
    stage = Stage(make_serve(model=MODEL, rollout={"gate": {"heldOut": {"rows": 80}}, **rollout}))
    live = stage.roll_out()
    stage.edit(model=OTHER)
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    return stage, live, stage.candidate()


def command(stage: Stage) -> list[str]:
    """The command of the gate's Job that runs."""
    (job,) = [j for j in stage.of("Job") if not j.get("status")]
    return list(container(job)["command"])


def container(job: Object) -> Object:
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_a_gate_is_told_whom_to_ask_beside_the_candidate() -> None:
    stage, live, candidate = another()
    asked = command(stage)
    assert asked[asked.index("--url") + 1] == f"http://facts-{candidate}.default.svc:8000/v1"
    told = Live.model_validate_json(asked[asked.index("--live") + 1])
    url = f"http://facts-{live}.default.svc:8000/v1"
    assert told == Live(revision=live, url=url, rows=EVALUATION, held_out=HeldOut(rows=80))
    assert ("Service", f"facts-{live}") in stage.objects


def test_test_rows_of_a_claim_are_mounted_where_nothing_but_heldout_asks_them() -> None:
    stage, _, _ = another(gate={"heldOut": {}, "testRows": {"count": 0}})
    (job,) = [j for j in stage.of("Job") if not j.get("status")]
    assert "--rows" not in command(stage)
    assert any(v.get("persistentVolumeClaim") for v in job["spec"]["template"]["spec"]["volumes"])
    assert job["spec"]["activeDeadlineSeconds"] == 3 * (2 * 300 + 300), "time for the prompts, and for heldOut"


def test_the_first_revision_is_compared_with_none() -> None:
    stage = Stage(make_serve(model=MODEL, rollout={"gate": {"heldOut": {}}}))
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    assert "--live" not in command(stage)


def test_a_candidate_that_is_worse_is_refused_with_both_numbers() -> None:
    stage, live, candidate = another()
    stage.finish_gate(WORSE, held_out=SCORES)
    (event,) = stage.step().events
    assert (event.reason, event.warning, WORSE.message in event.message) == ("RevisionRefused", True, True)
    stage.settle()
    assert (standing(stage), reason(stage), stage.live(), is_available(stage)) == (STALLED, "WorseThanLive", live, True)
    told = stage.serve["status"]["candidate"]
    assert (told["name"], told["heldOut"]) == (candidate, SCORES.model_dump(by_alias=True))


def test_a_candidate_that_is_as_good_serves_and_its_numbers_stay() -> None:
    stage, _, candidate = another()
    stage.finish_gate(held_out=SCORES)
    (event,) = stage.step().events
    assert (event.reason, "f1 0.6 on 80 test rows, 0.8 of revision a1" in event.message) == ("RevisionLive", True)
    stage.settle()
    assert (standing(stage), stage.live()) == (SERVING, candidate)
    assert stage.serve["status"]["live"]["heldOut"]["score"] == 0.6


def test_too_few_rows_are_no_verdict_and_somebody_should_look() -> None:
    stage, live, candidate = another()
    few = Failure(reason="TooFewRows", message="12 test rows were answered")
    for _ in range(3):
        stage.lose_gate(few, "BackoffLimitExceeded", ExitCode.BAD_DATA)
        stage.step()
        stage.later(600)
        stage.step()
    assert (standing(stage), reason(stage), stage.live(), stage.candidate()) == (STALLED, "TooFewRows", live, candidate)
    assert few.message in stage.message()
    stage.finish_gate(held_out=SCORES)
    stage.settle()
    assert stage.live() == candidate, "it is asked again all the same"


@pytest.mark.parametrize("asked", [{"rows": 80}, {"rows": 80, "maxDrop": 0.2}])
def test_another_comparison_tries_a_refused_revision_again(asked: dict[str, Any]) -> None:
    stage, _, candidate = another()
    stage.finish_gate(WORSE)
    stage.settle()
    stage.edit(rollout={"gate": {"heldOut": asked}})
    stage.step()
    again = "maxDrop" in asked
    assert (stage.candidate(), reason(stage)) == (candidate, "Loading" if again else "WorseThanLive")


def test_auto_does_not_stop_what_the_candidate_is_compared_with() -> None:
    stage = Stage(make_serve(model=MODEL, rollout={"gate": {"heldOut": {}}, "maxDowntimeSeconds": 86400}))
    live = stage.roll_out()
    stage.edit(model=OTHER)
    stage.step()
    stage.pod(stage.candidate(), conditions=[UNSCHEDULABLE])
    stage.later(300)
    stage.step()
    assert (stage.deployment(live)["spec"]["replicas"], reason(stage)) == (1, "Unschedulable")


def test_a_model_without_an_evaluation_takes_no_gpu() -> None:
    serve = make_serve(model={"jobRef": {"name": "facts", "artifact": "q4"}}, rollout={"gate": {"heldOut": {}}})
    stage = Stage(serve)
    stage.put(make_finished_job())
    stage.put({"kind": "PersistentVolumeClaim", "metadata": {"name": "facts-artifacts"}})
    stage.step()
    assert (stage.revisions(), standing(stage), reason(stage)) == (set(), STALLED, "EvaluationNotFound")
    assert "leave heldOut and judge out" in stage.message()


# ── A judge ───────────────────────────────────────────────────────────────────────────────────────────────────────────

JUDGE = {
    "baseUrl": "https://judge.example/v1",
    "model": "judge-1",
    "secretRef": {"name": "judge"},
    "rubric": {"name": "taste", "key": "rubric.txt"},
}


def judged(data: dict[str, str]) -> Stage:
    stage = Stage(make_serve(model=MODEL, rollout={"gate": {"judge": JUDGE}}))
    stage.put({"kind": "Secret", "metadata": {"name": "judge"}})
    stage.put({"kind": "ConfigMap", "metadata": {"name": "taste"}, "data": data})
    return stage


def test_a_gate_gets_the_judges_key_and_rubric_and_no_key_is_in_its_command() -> None:
    stage = judged({"rubric.txt": "Prefer short answers."})
    stage.roll_out()
    stage.edit(model=OTHER)
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    asked = command(stage)
    told = Live.model_validate_json(asked[asked.index("--live") + 1])
    assert (told.held_out, told.judge and told.judge.base_url, told.count) == (None, "https://judge.example/v1", 50)
    assert asked[asked.index("--rubric") + 1] == "/etc/finetune-rubric/rubric.txt"
    (job,) = [j for j in stage.of("Job") if not j.get("status")]
    key = {"name": "FINETUNE_JUDGE_KEY", "valueFrom": {"secretKeyRef": {"name": "judge", "key": "api-key"}}}
    assert key in container(job)["env"]
    assert {"name": "rubric", "configMap": {"name": "taste"}} in job["spec"]["template"]["spec"]["volumes"]


@pytest.mark.parametrize(
    ("lost", "data", "why"),
    [
        ("Secret", {"rubric.txt": "x"}, "SecretNotFound"),
        ("ConfigMap", {"rubric.txt": "x"}, "ConfigMapNotFound"),
        ("", {"other": "x"}, "ConfigMapKeyNotFound"),
    ],
)
def test_what_a_judge_needs_is_there_before_a_gpu_is_taken(lost: str, data: dict[str, str], why: str) -> None:
    stage = judged(data)
    for kind, name in [key for key in stage.objects if key[0] == lost]:
        del stage.objects[kind, name]
    stage.step()
    assert (stage.revisions(), reason(stage)) == (set(), why)


def test_a_judges_verdict_is_told_with_its_interval() -> None:
    stage, _, _ = another()
    told = Judged(
        against="a1", model="j", pairs=20, wins=14, losses=4, win_rate=0.75, low=0.53, high=0.89, calls=40, tokens=9000
    )
    stage.finish_gate(judged=told)
    (event,) = stage.step().events
    assert "win rate 0.75 (0.53 to 0.89) against a1 by j" in event.message
    assert stage.serve["status"]["live"]["judged"]["winRate"] == 0.75


@pytest.mark.parametrize(("least", "is_refused"), [(50, False), (51, True)])
def test_no_more_rows_can_be_needed_than_are_asked(least: int, is_refused: bool) -> None:
    spec = make_serve(model=MODEL, rollout={"gate": {"heldOut": {"rows": 50, "minRows": least}}})["spec"]
    said = broken_by(ModelServeSpec.model_validate(spec))
    assert said == (["spec.rollout.gate.heldOut.minRows must be at most rows"] if is_refused else [])


@pytest.mark.parametrize(("calls", "is_enough"), [(19, False), (20, True)])
def test_a_judge_that_may_not_be_asked_of_enough_pairs_is_refused(calls: int, is_enough: bool) -> None:
    judge = {"baseUrl": "https://judge/v1", "model": "judge", "maxCalls": calls, "minPairs": 10}
    spec = make_serve(model=MODEL, rollout={"gate": {"judge": judge}})["spec"]
    said = broken_by(ModelServeSpec.model_validate(spec))
    assert said == ([] if is_enough else ["spec.rollout.gate.judge.maxCalls must be at least twice minPairs: a pair takes two"])
