"""A revision that proves bad after its promotion, against a real API server: traffic goes back, and stays there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.integration.conftest import Operator, World
from tests.integration.fake_node import Ending, FakeNode, Pod
from tests.integration.test_crashes import PROGRAM
from tests.integration.test_operator import condition, events, quiet
from tests.integration.test_rollout import apply_serve, good_engine
from tests.waiting import wait_until

from finetune_trainer.contract.exits import ExitCode

TWO = {"uri": "pvc://models/two"}


def revision(body: dict[str, Any]) -> str:
    return str(body["metadata"]["labels"]["finetune.dev/revision"])


def live(world: World, space: str) -> str | None:
    found = world.get(f"/api/v1/namespaces/{space}/services/bot") or {}
    selected: str | None = found.get("spec", {}).get("selector", {}).get("finetune.dev/revision")
    return selected


def crash(world: World, space: str, bad: str) -> None:
    """The kubelet tells of a restart of each engine of a revision, now."""
    pods = f"/api/v1/namespaces/{space}/pods"
    for pod in world.items(f"{pods}?labelSelector=finetune.dev%2Frevision%3D{bad}"):
        (engine,) = pod["status"]["containerStatuses"]
        ended = {"exitCode": 139, "reason": "Error", "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2099-01-01T00:00:00Z"}
        engine |= {"restartCount": 1, "lastState": {"terminated": ended}}
        status = {"status": {"containerStatuses": [engine]}}
        world.api.request("PATCH", f"{pods}/{pod['metadata']['name']}/status", status, "application/merge-patch+json")


def test_traffic_goes_back_from_a_revision_that_crashes(world: World, operators: Callable[..., Operator]) -> None:
    space = world.namespace("rollback")
    path = apply_serve(world, space)
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    deployments = f"/apis/apps/v1/namespaces/{space}/deployments"
    with FakeNode(world.api, space, good_engine):
        wait_until("the first revision is live", lambda: condition(world, path, "Ready") == "True", 60)
        first = live(world, space)
        pods = {
            p["metadata"]["uid"] for p in world.items(f"/api/v1/namespaces/{space}/pods") if p["metadata"]["name"] != "gate"
        }
        apply_serve(world, space, model=TWO)
        wait_until("the second is live", lambda: live(world, space) not in (first, None), 60)
        second = live(world, space)
        assert second
        wait_until("its window is open", lambda: world.read(path)["status"].get("rollbackWindow", {}).get("revision") == first)
        quiet(operator)
        assert {revision(d) for d in world.items(deployments)} == {first, second}

        operator.kill()
        crash(world, space, second)
        operator.start()
        wait_until("the first serves again", lambda: live(world, space) == first)
        wait_until("the second is gone", lambda: [revision(d) for d in world.items(deployments)] == [first])
        status = world.read(path)["status"]
        assert (condition(world, path, "Available"), condition(world, path, "Stalled")) == ("True", "True")
        assert (status["candidate"]["name"], status["candidate"]["reason"]) == (second, "EngineRestarted")
        assert "exit code 139 (Error), 1 restarts" in status["candidate"]["message"]
        kept = {p["metadata"]["uid"] for p in world.items(f"/api/v1/namespaces/{space}/pods")}
        assert pods & kept, "the pods that serve again are those of before"
        wait_until("an event tells", lambda: "RevisionRolledBack" in {e["reason"] for e in events(world, space)})

        writes = quiet(operator)
        world.kubectl("patch", "mserve", "bot", "-n", space, "--subresource=status", "--type=json",
                      "-p", '[{"op": "replace", "path": "/status", "value": {"observedGeneration": -1}}]')  # fmt: skip
        wait_until("it is told again", lambda: condition(world, path, "Stalled") == "True")
        quiet(operator)
        assert (live(world, space), [revision(d) for d in world.items(deployments)]) == (first, [first])
        assert writes
    assert operator.refusals() == []


def test_traffic_goes_back_from_a_revision_whose_engines_count_errors(world: World, operators: Callable[..., Operator]) -> None:
    """The watch's Job, as the chart's rights allow it, and its end on the real API server."""
    space = world.namespace("burn")
    spec: dict[str, Any] = {"engine": {"type": "VLLM"}}
    path = apply_serve(world, space, **spec)
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    said: dict[str, Any] = {"failure": {"reason": "TooManyErrors", "message": "9 of 60 requests ended with an error"}}
    burnt = False

    def ending(pod: Pod) -> Ending | None:
        if pod["spec"]["containers"][0]["name"] != "watch":
            return good_engine(pod)
        return (ExitCode.VERIFICATION_FAILED, json.dumps(said)) if burnt else None

    with FakeNode(world.api, space, ending):
        wait_until("the first revision is live", lambda: condition(world, path, "Ready") == "True", 60)
        first = live(world, space)
        apply_serve(world, space, model=TWO, **spec)
        wait_until("the second is live", lambda: live(world, space) not in (first, None), 60)
        second = live(world, space)
        quiet(operator)
        assert world.read(path)["status"]["rollbackWindow"]["signals"] == ["Restarts", "Probes", "Errors"]
        assert (world.get(f"/api/v1/namespaces/{space}/services/bot-{second}-pods") or {})["spec"]["clusterIP"] == "None"
        burnt = True
        wait_until("the first serves again", lambda: live(world, space) == first, 60)
        wait_until("the watch is gone", lambda: world.get(f"/api/v1/namespaces/{space}/services/bot-{second}-pods") is None)
        wait_until("it is told", lambda: condition(world, path, "Stalled") == "True")
        status = world.read(path)["status"]
        assert (status["candidate"]["name"], status["candidate"]["reason"]) == (second, "TooManyErrors")
        assert "9 of 60 requests ended with an error" in status["candidate"]["message"]
        quiet(operator)
    assert operator.refusals() == []


def test_a_person_promotes_and_goes_back_by_annotations(world: World, operators: Callable[..., Operator]) -> None:
    space = world.namespace("by-hand")
    manual = {"promotion": "Manual", "rollbackWindowSeconds": 0}
    path = apply_serve(world, space, rollout=manual)
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    deployments = f"/apis/apps/v1/namespaces/{space}/deployments"

    def ready() -> str:
        return next((c["reason"] for c in world.read(path)["status"].get("conditions", []) if c["type"] == "Ready"), "")

    with FakeNode(world.api, space, good_engine):
        wait_until("the first revision is live", lambda: condition(world, path, "Ready") == "True", 60)
        first = live(world, space)
        apply_serve(world, space, rollout=manual, model=TWO)
        wait_until("the second waits", lambda: ready() == "AwaitingPromotion", 60)
        quiet(operator)
        second = world.read(path)["status"]["candidate"]["name"]
        assert live(world, space) == first
        world.kubectl("annotate", "mserve", "bot", "-n", space, f"finetune.dev/promote={second}")
        wait_until("the second serves", lambda: live(world, space) == second)
        wait_until("the first is gone", lambda: [revision(d) for d in world.items(deployments)] == [second])

        world.kubectl("annotate", "mserve", "bot", "-n", space, f"finetune.dev/rollback={second}")
        wait_until("the first serves again", lambda: live(world, space) == first, 60)
        wait_until("that is what was asked for", lambda: ready() == "Pinned")
        wait_until("the second is gone", lambda: [revision(d) for d in world.items(deployments)] == [first])
        assert [h["name"] for h in world.read(path)["status"]["history"]] == [first, second]
        quiet(operator)
    assert operator.refusals() == []


def test_recreate_tells_of_the_outage_and_stops_the_live_one_first(world: World, operators: Callable[..., Operator]) -> None:
    space = world.namespace("recreate")
    recreate = {"strategy": "Recreate"}
    path = apply_serve(world, space, rollout=recreate)
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    deployments = f"/apis/apps/v1/namespaces/{space}/deployments"
    with FakeNode(world.api, space, good_engine):
        wait_until("the first revision is live", lambda: condition(world, path, "Ready") == "True", 60)
        first = live(world, space)
        quiet(operator)
        before = len(operator.proxy.writes())
        apply_serve(world, space, rollout=recreate, model=TWO)
        wait_until("the second is live", lambda: live(world, space) not in (first, None), 60)
        wait_until("the first is gone", lambda: len(world.items(deployments)) == 1)
        wait_until("it is ready", lambda: condition(world, path, "Ready") == "True")
        paths = [w.path.partition("?")[0] for w in operator.proxy.writes()[before:]]
        status, stopped = paths.index(f"{path}/status"), paths.index(f"{deployments}/bot-{first}")
        assert status < stopped, "that nothing will answer is told before"
        assert "Recreating" in {e["reason"] for e in events(world, space)}
        assert "rollbackWindow" not in world.read(path)["status"]
    assert operator.refusals() == []
