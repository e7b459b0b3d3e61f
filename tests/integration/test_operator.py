"""The operator as a process against a real API server, with a tiny policy: what is true of every policy."""

from __future__ import annotations

import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import FINETUNE, SYSTEM, Operator, World
from tests.integration.fake_node import FakeNode
from tests.waiting import wait_until, within

IDLE_SECONDS, REQUESTS_PER_SECOND = 20, 1.0
TINY = str(Path(__file__).with_name("tiny_operator.py"))
Operators = Callable[..., Operator]


def apply_job(world: World, namespace: str, name: str = "one", **metadata: Any) -> str:
    """A FineTuneJob; returns its path."""
    path = f"{FINETUNE}/namespaces/{namespace}/finetunejobs/{name}"
    spec = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}}
    body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name, **metadata}}
    world.api.apply(path, body | {"spec": spec})
    return path


def condition(world: World, path: str, kind: str) -> str | None:
    found = (world.get(path) or {}).get("status", {}).get("conditions", [])
    return next((c["status"] for c in found if c["type"] == kind), None)


def jobs(world: World, namespace: str) -> list[dict[str, Any]]:
    return world.items(f"/apis/batch/v1/namespaces/{namespace}/jobs")


def events(world: World, namespace: str) -> list[dict[str, Any]]:
    found = world.items(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")
    return [e for e in found if e.get("reportingController") == "finetune.dev/operator"]


def leader(world: World) -> str | None:
    lease = world.get(f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/finetune-operator") or {}
    holder: str | None = lease.get("spec", {}).get("holderIdentity")
    return holder


def quiet(operator: Operator, seconds: float = 1.5) -> int:
    """Number of writes, once there were none for so long."""
    while operator.proxy.written.wait(seconds):
        operator.proxy.written.clear()
    return len(operator.proxy.writes())


def succeed(_: dict[str, Any]) -> tuple[int, str]:
    return 0, "{}"


def test_from_object_to_job_to_status_to_event_and_then_silence(world: World, operators: Operators) -> None:
    space = world.namespace("whole-way")
    path = apply_job(world, space)
    operator = operators(TINY, FINETUNE_NAMESPACE=space).start()
    with FakeNode(world.api, space, succeed):
        wait_until("the object is ready", lambda: condition(world, path, "Ready") == "True")
    body = world.get(path)
    assert body is not None
    assert body["status"]["observedGeneration"] == body["metadata"]["generation"]
    assert "finalizers" not in body["metadata"]
    assert "annotations" not in body["metadata"], "Kopf must leave no mark"
    (job,) = jobs(world, space)
    assert job["metadata"]["ownerReferences"][0]["uid"] == body["metadata"]["uid"]
    told = wait_until("the event is there", lambda: events(world, space))
    assert [(e["reason"], e["regarding"]["name"], e["type"]) for e in told] == [("Succeeded", "one", "Normal")]
    assert "Succeeded" in world.kubectl("describe", "ftj", "one", "-n", space)

    # The same again changes nothing: neither another apply of the same object nor a fresh operator writes.
    before = quiet(operator)
    apply_job(world, space)
    assert quiet(operator) == before
    assert operator.stop() == 0
    operator.start()
    wait_until("the fresh operator acts", lambda: operator.log.count('"leading"') == 2)
    assert quiet(operator) == before
    assert operator.refusals() == []
    assert len(operator.proxy.writes()) == 3, "one Job, two statuses"


def test_a_deleted_object_takes_its_job_along_and_its_name_can_be_used_again(world: World, operators: Operators) -> None:
    space = world.namespace("deleted")
    path = apply_job(world, space)
    operators(TINY, FINETUNE_NAMESPACE=space).start()
    (first,) = wait_until("there is a Job", lambda: jobs(world, space))
    world.api.request("DELETE", path, {"propagationPolicy": "Background"})
    apply_job(world, space)

    def second() -> bool:
        found = [j for j in jobs(world, space) if j["metadata"]["uid"] != first["metadata"]["uid"]]
        return bool(found) and found[0]["metadata"]["ownerReferences"][0]["uid"] == world.read(path)["metadata"]["uid"]

    wait_until("the second object has a Job of its own", second)


def test_a_held_object_is_left_alone_until_it_is_let_go(world: World, operators: Operators) -> None:
    space = world.namespace("held")
    path = apply_job(world, space, "held", annotations={"finetune.dev/hold": "true"})
    apply_job(world, space, "free")
    operators(TINY, FINETUNE_NAMESPACE=space).start()
    wait_until("the other object has its Job", lambda: jobs(world, space))
    assert [j["metadata"]["name"] for j in jobs(world, space)] == ["free-1"]
    wait_until("it says that it is held", lambda: condition(world, path, "Held") == "True")
    body = {"metadata": {"annotations": {"finetune.dev/hold": None}}}
    world.api.request("PATCH", path, body, "application/merge-patch+json")
    wait_until("the object that was let go has its Job", lambda: len(jobs(world, space)) == 2)


def test_what_the_server_refuses_is_in_the_status_and_mended_without_a_restart(world: World, operators: Operators) -> None:
    space = world.namespace("quota")
    quota = f"/api/v1/namespaces/{space}/resourcequotas/none"
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}}
    world.api.apply(quota, body | {"spec": {"hard": {"count/jobs.batch": "0"}}})
    wait_until("the quota counts", lambda: "hard" in (world.get(quota) or {}).get("status", {}))
    path = apply_job(world, space)
    operators(TINY, FINETUNE_NAMESPACE=space).start()
    wait_until("the status tells", lambda: condition(world, path, "Reconciling") == "True")
    conditions = {c["type"]: c for c in world.read(path)["status"]["conditions"]}
    assert conditions["Ready"]["status"] == "False"
    assert conditions["Ready"]["reason"] == "Refused"
    assert "exceeded quota" in conditions["Ready"]["message"]
    world.api.request("DELETE", quota)
    wait_until("there is a Job after all", lambda: jobs(world, space))
    wait_until("the status tells that, too", lambda: condition(world, path, "Reconciling") is None)


def test_only_one_of_two_replicas_acts_and_the_other_takes_over(world: World, operators: Operators) -> None:
    space = world.namespace("leader")
    first = operators(TINY, FINETUNE_IDENTITY="first", FINETUNE_NAMESPACE=space).start()
    wait_until("the first leads", lambda: '"leading"' in first.log)
    second = operators(TINY, FINETUNE_IDENTITY="second", FINETUNE_NAMESPACE=space).start()
    wait_until("the second stands by", lambda: '"standing by"' in second.log)
    apply_job(world, space)
    wait_until("the first acts", lambda: jobs(world, space))
    quiet(first)
    assert second.proxy.writes() == []
    assert leader(world) == "first"
    assert first.stop() == 0
    wait_until("the second leads at once", lambda: leader(world) == "second", 8)
    apply_job(world, space, "two")
    wait_until("the second acts", lambda: len(jobs(world, space)) == 2)
    assert second.refusals() == []


def test_a_frozen_leader_writes_nothing_after_its_lease_ran_out(world: World, operators: Operators) -> None:
    space = world.namespace("frozen")
    first = operators(TINY, FINETUNE_IDENTITY="first", FINETUNE_NAMESPACE=space).start()
    wait_until("the first leads", lambda: '"leading"' in first.log)
    second = operators(TINY, FINETUNE_IDENTITY="second", FINETUNE_NAMESPACE=space).start()
    wait_until("the second stands by", lambda: '"standing by"' in second.log)
    assert first.process is not None
    first.process.send_signal(signal.SIGSTOP)
    apply_job(world, space)
    wait_until("the second has taken over", lambda: jobs(world, space), 40)
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(30) == 1, "a leader that lost its lease ends at once"
    assert first.proxy.writes() == []
    assert len(jobs(world, space)) == 1


def test_an_operator_with_nothing_to_do_is_small_and_silent(world: World, operators: Operators) -> None:
    """The program itself, in a namespace of its own: in the others, other tests' jobs wait for nodes that do not exist."""
    space = world.namespace("idle")
    apply_job(world, space, "held", annotations={"finetune.dev/hold": "true"})
    operator = operators("-m", "finetune_operator", FINETUNE_NAMESPACE=space).start()
    wait_until("it leads", lambda: '"leading"' in operator.log)
    quiet(operator, 6)  # Kopf has listed, and its workers have ended
    before = len(operator.proxy.requests)
    too_many = within(IDLE_SECONDS, lambda: len(operator.proxy.requests) - before > IDLE_SECONDS * REQUESTS_PER_SECOND)
    assert operator.process is not None
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    resident = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024
    print(f"idle: {resident:.0f} MiB resident, {len(operator.proxy.requests) - before} requests in {IDLE_SECONDS} s")
    assert resident <= 120
    assert not too_many


@pytest.mark.parametrize("watched", [True, False])
def test_only_the_namespace_to_watch_is_looked_at(world: World, operators: Operators, watched: bool) -> None:
    space = world.namespace(f"watched-{str(watched).lower()}")
    apply_job(world, space)
    looked_at = space if watched else SYSTEM
    operator = operators(TINY, FINETUNE_NAMESPACE=looked_at).start()
    wait_until("it leads", lambda: '"leading"' in operator.log)

    def lists() -> list[str]:
        return [r.path for r in operator.proxy.requests if r.path.endswith(("/finetunejobs", "/jobs", "/pods", "/services"))]

    wait_until("it has looked", lists)
    if watched:
        wait_until("there is a Job", lambda: jobs(world, space))
    quiet(operator)
    assert len(jobs(world, space)) == (1 if watched else 0)
    assert all(f"/namespaces/{looked_at}/" in path for path in lists())
    assert operator.refusals() == []


def test_metrics_and_probes_answer(world: World, operators: Operators) -> None:
    space = world.namespace("metrics")
    apply_job(world, space)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    operator = operators(TINY, FINETUNE_NAMESPACE=space, FINETUNE_HTTP_PORT=str(port)).start()
    wait_until("there is a Job", lambda: jobs(world, space))
    quiet(operator)

    def answer(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return str(response.read(), "utf-8")

    assert answer("/healthz") == answer("/readyz") == "ok\n"
    metrics = answer("/metrics")
    for line in (
        'leader_election_master_status{name="finetune-operator"} 1.0',
        'finetune_resources{condition="Ready",kind="FineTuneJob",status="False"} 1.0',
        'controller_runtime_reconcile_total{controller="FineTuneJob",result="success"}',
        'workqueue_depth{name="finetune-operator"} 0.0',
    ):
        assert line in metrics
    assert 'rest_client_requests_total{code="403"' not in metrics
