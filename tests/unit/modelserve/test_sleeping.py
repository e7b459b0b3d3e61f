"""A ModelServe that has no pods while nobody asks: what stands before it, when it sleeps and when it wakes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.serving import SETTINGS, Stage, make_serve
from tests.unit.modelserve.test_adapters import LEGAL, ON_VLLM

from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.api.rules.modelserve import broken_by
from finetune_operator.decision import Apply, Create
from finetune_operator.meta import Object
from finetune_operator.names import short_hash
from finetune_trainer.contract.gateway import Look
from finetune_trainer.contract.reports import Failure

SLEEPY: dict[str, Any] = {"autoscaling": {"minReplicas": 0, "maxReplicas": 1}, "rollout": {"rollbackWindowSeconds": 0}}
TO_GATEWAY = {"finetune.dev/gateway": "true"}
GATEWAY, LIVE = (f"facts-{end}-{short_hash('facts', end, length=6)}" for end in ("gateway", "live"))


def made(**spec: Any) -> Stage:
    """Its first revision serves, behind its gateway."""
    stage = Stage(make_serve(**{**SLEEPY, **spec}))
    stage.roll_out()
    stage.gateway()
    stage.settle()
    return stage


def test_what_stands_before_it_is_applied_anew_and_what_looks_is_made_once() -> None:
    stage = made()
    actions = stage.step().actions
    applied = {a.body["kind"] for a in actions if isinstance(a, Apply)}
    assert "Job" not in applied
    assert not [a for a in actions if isinstance(a, Create)]
    (job,) = [name for kind, name in stage.objects if kind == "Job" and "idle" in name]
    del stage.objects["Job", job]
    created = [a.body["metadata"]["name"] for a in stage.step().actions if isinstance(a, Create)]
    assert created == [job]


def live(stage: Stage) -> str:
    return str(stage.serve["status"]["live"]["name"])


def pods(stage: Stage) -> int:
    """How many the live revision is to have."""
    count: int = stage.deployment(live(stage))["spec"]["replicas"]
    return count


def service(stage: Stage, name: str = "facts") -> Object:
    spec: Object = stage.objects["Service", name]["spec"]
    return spec


def leads_to(stage: Stage, name: str = "facts") -> tuple[str, str]:
    """What a Service selects, and the port that it leads to."""
    spec = service(stage, name)
    selected = spec["selector"]
    return selected.get("finetune.dev/revision") or ("gateway" if TO_GATEWAY.items() <= selected.items() else "all"), (
        spec["ports"][0]["targetPort"]
    )


def look(stage: Stage) -> Look | None:
    """What is waited for at the gateway."""
    jobs = [j for j in stage.of("Job") if "finetune.dev/gateway" in j["metadata"]["labels"]]
    if not jobs:
        return None
    (job,) = jobs
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    return Look.model_validate_json(command[command.index("--look") + 1])


def until(stage: Stage) -> str | None:
    found = look(stage)
    return None if found is None else str(found.until)


def sleeps(stage: Stage) -> None:
    """Nobody asks, and the pods go."""
    stage.look_ends()
    stage.settle()
    stage.available(live(stage))
    stage.settle()


# ── Asleep and awake ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_gateway_stands_before_the_pods_once_it_is_there_and_only_then() -> None:
    stage = Stage(make_serve(**SLEEPY))
    revision = stage.roll_out()
    assert leads_to(stage) == (revision, "http"), "requests reach the pods meanwhile"
    assert look(stage) is None
    stage.gateway()
    stage.settle()
    assert (leads_to(stage), leads_to(stage, LIVE)) == (("gateway", "gateway"), (revision, "http"))
    stage.gateway(0)
    stage.settle()
    assert (leads_to(stage), look(stage)) == ((revision, "http"), None), "and where it is lost"
    assert stage.conditions()["Available"][0] == "True"


def test_where_one_is_the_least_nothing_stands_before_the_pods() -> None:
    stage = Stage(make_serve(autoscaling={"maxReplicas": 2}))
    stage.roll_out()
    assert not [o for o in stage.objects.values() if "finetune.dev/gateway" in o["metadata"].get("labels", {})]


def test_it_sleeps_once_nobody_has_asked_and_wakes_once_somebody_waits() -> None:
    stage = made()
    revision = live(stage)
    assert (until(stage), pods(stage)) == ("Idle", 1)
    found = look(stage)
    assert found is not None
    assert (found.host, found.port, found.idle_seconds) == (f"{GATEWAY}.default.svc", 8000, 300)
    sleeps(stage)
    assert (until(stage), pods(stage), live(stage)) == ("Asked", 0, revision)
    assert (leads_to(stage), leads_to(stage, LIVE)) == (("gateway", "gateway"), (revision, "http"))
    assert stage.conditions()["Ready"] == ("True", "ScaledToZero")
    assert stage.conditions()["Available"] == ("True", "Holding")
    assert stage.message() == (
        "nobody has asked for 300 s: no pods; the first request starts them, and is held for 600 s at most"
    )
    assert not stage.settle().actions
    stage.look_ends()
    stage.settle()
    assert (until(stage), pods(stage)) == (None, 1)
    assert stage.conditions()["Ready"] == ("False", "Scaling")
    assert stage.conditions()["Available"] == ("True", "Holding")
    stage.available(revision)
    stage.settle()
    assert (until(stage), stage.conditions()["Available"]) == ("Idle", ("True", "Answering"))


def test_each_time_is_asked_by_a_job_of_its_own() -> None:
    stage = made()
    names = set[str]()
    for _ in range(3):
        for _ in ("sleeps", "wakes"):
            (job,) = [j["metadata"]["name"] for j in stage.of("Job") if "finetune.dev/gateway" in j["metadata"]["labels"]]
            names.add(job)
            sleeps(stage)
    assert len(names) == 6


def test_another_time_without_requests_counts_at_once() -> None:
    stage = made()
    stage.edit(autoscaling={**SLEEPY["autoscaling"], "idleSeconds": 60})
    stage.settle()
    found = look(stage)
    assert found is not None
    assert found.idle_seconds == 60


@pytest.mark.parametrize("is_asleep", [False, True])
def test_a_status_that_is_lost_changes_nothing(is_asleep: bool) -> None:
    stage = made()
    if is_asleep:
        sleeps(stage)
    before = {key: body["spec"] for key, body in stage.objects.items() if "spec" in body}
    stage.serve["status"] = {"observedGeneration": -1}
    stage.settle()
    assert {key: body["spec"] for key, body in stage.objects.items() if "spec" in body} == before


@pytest.mark.parametrize("is_asleep", [False, True])
def test_a_job_that_failed_is_made_anew(is_asleep: bool) -> None:
    stage = made()
    if is_asleep:
        sleeps(stage)
    before, count = until(stage), pods(stage)
    stage.lose_gate(None, "BackoffLimitExceeded")
    stage.settle()
    assert (until(stage), pods(stage)) == (before, count)
    assert [j for j in stage.of("Job") if "finetune.dev/gateway" in j["metadata"]["labels"] and not j.get("status")]


def test_it_goes_on_sleeping_where_its_gateway_is_lost_and_says_so() -> None:
    stage = made()
    sleeps(stage)
    stage.gateway(0)
    stage.settle()
    assert (pods(stage), stage.conditions()["Available"]) == (0, ("False", "NoPods"))
    stage.gateway()
    stage.settle()
    assert (until(stage), stage.conditions()["Available"][0]) == ("Asked", "True")


def test_it_does_not_fall_asleep_without_a_gateway_to_hold_who_comes() -> None:
    stage = made()
    stage.look_ends()
    stage.gateway(0)
    stage.settle()
    assert pods(stage) == 1


# ── What keeps it awake ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rollback_window_keeps_it_awake() -> None:
    stage = made(rollout={"rollbackWindowSeconds": 300})
    stage.edit(model={"uri": "pvc://models/next"})
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    assert until(stage) is None, "a revision is on its way"
    stage.finish_gate()
    stage.settle()
    assert "rollbackWindow" in stage.serve["status"]
    assert until(stage) is None
    stage.later(301)
    stage.settle()
    assert until(stage) == "Idle"


def test_a_new_revision_wakes_the_one_before_and_takes_over_behind_the_gateway() -> None:
    stage = made()
    first = live(stage)
    sleeps(stage)
    stage.edit(model={"uri": "pvc://models/next"})
    stage.step()
    assert pods(stage) == 1, "so that there is one to go back to"
    stage.available(first)
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate()
    stage.step()
    assert first in stage.revisions(), "requests may be on their way to it"
    stage.settle()
    assert leads_to(stage) == ("gateway", "gateway")
    assert leads_to(stage, LIVE) == (live(stage), "http") != (first, "http")
    assert stage.revisions() == {live(stage)}


def test_the_old_revision_stays_while_the_gateway_still_leads_to_it() -> None:
    stage = made()
    first = live(stage)
    stage.edit(model={"uri": "pvc://models/next"})
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate()
    leads = json.loads(json.dumps(service(stage, LIVE)))
    stage.step()
    stage.objects["Service", LIVE]["spec"] = leads  # as a pass that was cut off leaves it
    stage.step()
    assert first in stage.revisions()
    stage.settle()
    assert stage.revisions() == {live(stage)}


def test_what_somebody_has_to_look_at_keeps_it_awake() -> None:
    stage = made()
    stage.edit(model={"uri": "pvc://models/next"})
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    stage.finish_gate(Failure(reason="GateFailed", message="wrong"))
    stage.settle()
    assert (stage.conditions()["Ready"], until(stage), pods(stage)) == (("False", "GateFailed"), None, 1)


def test_an_adapter_that_is_asked_for_wakes_it() -> None:
    stage = Stage(make_serve(**{**ON_VLLM, **SLEEPY}))
    stage.put({"kind": "PersistentVolumeClaim", "metadata": {"name": "tickets-artifacts"}})
    stage.roll_out()
    stage.gateway()
    stage.settle()
    sleeps(stage)
    stage.edit(adapters=[LEGAL])
    stage.settle()
    assert pods(stage) == 1
    stage.available(live(stage))
    stage.settle()
    assert stage.serve["status"]["adapters"][0]["state"] == "Gating"


# ── Coming and going ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_is_to_sleep_no_more_is_woken_before_the_gateway_goes() -> None:
    stage = made()
    sleeps(stage)
    gateway = {"kind": "Pod", "metadata": {"name": "gateway", "labels": {**service(stage)["selector"]}}, "status": {}}
    stage.put(gateway)
    stage.edit(autoscaling=None)
    stage.settle()
    assert (pods(stage), leads_to(stage)) == (1, ("gateway", "gateway")), "who waits is held until there is a pod"
    stage.available(live(stage))
    stage.settle()
    assert leads_to(stage) == (live(stage), "http")
    assert ("Deployment", GATEWAY) not in stage.objects
    assert ("Service", LIVE) in stage.objects, "it still ends what it holds"
    del stage.objects["Pod", "gateway"]
    stage.settle()
    assert not [o for o in stage.objects.values() if "finetune.dev/gateway" in o["metadata"].get("labels", {})]


@pytest.mark.parametrize("change", [{"suspend": True}, {"replicas": 0}])
def test_who_is_stopped_by_hand_has_no_gateway(change: dict[str, Any]) -> None:
    stage = made()
    stage.edit(**change)
    stage.settle()
    assert (pods(stage), stage.conditions()["Available"][0], until(stage)) == (0, "False", None)
    assert leads_to(stage)[1] == "http"
    assert ("Deployment", GATEWAY) not in stage.objects


def test_a_share_of_a_candidate_does_not_lead_back_to_the_gateway() -> None:
    steps = [{"weight": 50, "pauseSeconds": 60}]
    stage = made(rollout={"rollbackWindowSeconds": 0, "canary": {"steps": steps}})
    stage.edit(model={"uri": "pvc://models/next"})
    stage.roll_out_canary()
    assert (leads_to(stage), leads_to(stage, LIVE)) == (("gateway", "gateway"), ("all", "http"))
    (port,) = stage.objects["Deployment", GATEWAY]["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert port["name"] != "http", "the pods that it selects must not be the gateway's"


# ── The objects ───────────────────────────────────────────────────────────────────────────────────────────────────────


def gateway_pod(stage: Stage) -> Object:
    found: Object = stage.objects["Deployment", GATEWAY]["spec"]["template"]["spec"]
    return found


def test_the_gateway_is_told_whom_to_hold_and_ends_what_it_holds() -> None:
    scaling = {**SLEEPY["autoscaling"], "holdSeconds": 120, "holdRequests": 7}
    stage = made(autoscaling=scaling, drain={"seconds": 20}, servedName="bot")
    (container,) = gateway_pod(stage)["containers"]
    options = dict(zip(container["command"][3::2], container["command"][4::2], strict=True))
    assert options == {
        "--port": "8000",
        "--to": f"http://{LIVE}.default.svc:8000",
        "--model": "bot",
        "--hold": "120",
        "--most": "7",
        "--drain": "140",
    }
    assert gateway_pod(stage)["terminationGracePeriodSeconds"] == 150
    assert gateway_pod(stage)["automountServiceAccountToken"] is False
    assert service(stage, GATEWAY)["publishNotReadyAddresses"], "who is held by a pod that ends is to be seen as well"
    rolling = stage.objects["Deployment", GATEWAY]["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_gateway_asks_for_the_key_that_the_engine_asks_for() -> None:
    stage = Stage(make_serve(**SLEEPY, auth={"secretRef": {"name": "keys"}}))
    stage.put({"kind": "Secret", "metadata": {"name": "keys"}})
    stage.roll_out()
    (container,) = gateway_pod(stage)["containers"]
    assert {"name": "keys", "key": "api-key"} in [e["valueFrom"]["secretKeyRef"] for e in container["env"] if "valueFrom" in e]


def test_neither_gateway_nor_job_keeps_the_nodes_of_the_engine() -> None:
    template = {"nodeSelector": {"gpu": "h100"}, "tolerations": [{"key": "tenant", "operator": "Exists"}], "labels": {"a": "b"}}
    stage = made(podTemplate=template)
    (job,) = [j for j in stage.of("Job") if "finetune.dev/gateway" in j["metadata"]["labels"]]
    for pod in (gateway_pod(stage), job["spec"]["template"]["spec"]):
        assert "nodeSelector" not in pod
        assert pod["tolerations"] == [{"key": "tenant", "operator": "Exists"}]
    assert stage.objects["Deployment", GATEWAY]["spec"]["template"]["metadata"]["labels"]["a"] == "b"
    assert "activeDeadlineSeconds" not in job["spec"], "it waits for as long as it takes"


def test_who_may_ask_the_pods_may_ask_the_gateway_and_nobody_else() -> None:
    stage = made(network={"allowFrom": [{"namespaceSelector": {"matchLabels": {"team": "chat"}}}]})
    ours, its = (stage.objects["NetworkPolicy", name]["spec"] for name in ("facts", GATEWAY))
    assert its["ingress"][0]["from"] == ours["ingress"][0]["from"]
    assert its["ingress"][0]["ports"] == [{"port": "gateway", "protocol": "TCP"}]
    assert its["policyTypes"] == ["Ingress"], "it must reach the pods that serve"
    labels = stage.objects["Deployment", GATEWAY]["spec"]["template"]["metadata"]["labels"]
    assert its["podSelector"]["matchLabels"].items() <= labels.items()
    assert "finetune.dev/revision" not in labels, "the other policy would let it ask nobody"
    stage.settings = replace(SETTINGS, network_policies=False)
    stage.settle()
    assert stage.of("NetworkPolicy") == []


@pytest.mark.parametrize(("most", "expected"), [(1, []), (3, [(1, 3)])])
def test_an_autoscaler_scales_what_is_awake(most: int, expected: list[tuple[int, int]]) -> None:
    stage = made(autoscaling={"minReplicas": 0, "maxReplicas": most})
    found = [(o["spec"]["minReplicas"], o["spec"]["maxReplicas"]) for o in stage.of("HorizontalPodAutoscaler")]
    assert found == expected


def test_it_is_taken_by_every_rule() -> None:
    assert broken_by(ModelServeSpec.model_validate(make_serve(**SLEEPY)["spec"])) == []
