"""Rollouts under traffic that never stops: what is promoted, refused or taken back, and that nobody who asks notices.

The scenarios share the small trained job of test_finished.py; each has a ModelServe of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from demo.follow import condition, is_true
from demo.kubectl import Object
from tests.e2e import jobs
from tests.e2e.space import SERVE, Space
from tests.e2e.test_finished import NAME, SMALL
from tests.e2e.traffic import STOP
from tests.waiting import wait_until

pytestmark = pytest.mark.space("e2e-finished")
TESTS = Path(__file__).parents[1]
PROGRAM = {"traffic.py": TESTS / "e2e/traffic.py", "tests/waiting.py": TESTS / "waiting.py"}  # by the path in the pod
LONGEST_GAP = 15.0  # seconds without an answer to anybody; two busy cores load a model beside
WINDOW = {"rollbackWindowSeconds": 20}


@pytest.fixture
def trained(space: Space) -> Object:
    """The small job's artifacts; it is applied when it is not there."""
    space.apply(SMALL)
    return space.succeeded(NAME)


def serve(name: str, **spec: Any) -> Object:
    """A ModelServe of the small job's GGUF file. Keywords take the place of parts of its spec."""
    fields = {**jobs.served()["template"], "model": {"jobRef": {"name": NAME, "artifact": "q8"}}, "rollout": WINDOW}
    fields |= {"drain": {"seconds": 10}}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "ModelServe", "metadata": {"name": name}, "spec": fields | spec}


def context(tokens: int, **engine: Any) -> dict[str, Any]:
    """Another context is another revision of the same model."""
    return {"type": "LlamaCpp", "maxModelLength": tokens, **engine}


@contextmanager
def live(space: Space, name: str, **spec: Any) -> Iterator[str]:
    """A ModelServe whose first revision serves; it is taken away at the end."""
    space.apply(serve(name, **spec))
    try:
        found = space.until(SERVE, name, "is Ready", lambda s: is_true(s, "Ready"))
        yield str(found["status"]["live"]["name"])
    finally:
        space.delete(SERVE, name, "--wait=false")


@contextmanager
def traffic(space: Space, name: str) -> Iterator[dict[str, Any]]:
    """Ask a ModelServe without a pause. The report is there once the block has ended."""
    pod, report = f"{name}-traffic", dict[str, Any]()
    space.delete("pod", pod, "--ignore-not-found", "--wait")
    data = {file.name: file.read_text() for file in PROGRAM.values()}
    space.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": pod}, "data": data})
    space.apply(_pod(pod, space.operator_image, [f"http://{name}:8000/v1", name]))
    space.kubectl("wait", "pod", pod, "-n", space.name, "--for=condition=Ready", "--timeout=120s")
    wait_until("it is answered", lambda: "begun" in space.kubectl("logs", pod, "-n", space.name), 60)
    yield report
    space.kubectl("exec", pod, "-n", space.name, "--", "touch", STOP)
    space.kubectl("wait", "pod", pod, "-n", space.name, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    report |= json.loads(space.kubectl("logs", pod, "-n", space.name).splitlines()[-1])
    print(json.dumps(report, indent=1))
    space.delete("pod", pod, "--wait=false")


def _pod(name: str, image: str, arguments: list[str]) -> Object:
    container: Object = {
        "name": "traffic",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "/traffic/traffic.py", *arguments],
        "volumeMounts": [{"name": "program", "mountPath": "/traffic"}, {"name": "tmp", "mountPath": "/tmp"}],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
    }
    items = [{"key": file.name, "path": path} for path, file in PROGRAM.items()]
    volumes: list[Object] = [{"name": "program", "configMap": {"name": name, "items": items}}, {"name": "tmp", "emptyDir": {}}]
    spec: Object = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container], "volumes": volumes}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def nothing_lost(report: dict[str, Any], revisions: int) -> None:
    """Everybody was answered, by so many revisions."""
    assert report["failures"] == []
    assert report["longestGap"] <= LONGEST_GAP
    assert sorted(report["callers"]) == ["fresh plain", "fresh stream", "kept plain", "kept stream"]
    assert len(report["revisions"]) == revisions


def refused(space: Space, name: str, reason: str) -> Object:
    """The ModelServe once it has refused its candidate."""
    found = space.until(SERVE, name, f"is Stalled, {reason}", lambda s: (condition(s, "Stalled") or {}).get("reason") == reason)
    assert is_true(found, "Available")
    return found


@pytest.mark.usefixtures("trained")
def test_rollout_under_traffic(space: Space) -> None:
    """A new revision is compared with the live one and takes over, the old pods go, others come and go: no answer is lost."""
    compared = {**WINDOW, "gate": {"heldOut": {"rows": 8, "minRows": 4, "maxDrop": 0.5}, "maxTokens": 8}}
    with live(space, "rolling", rollout=compared) as first, traffic(space, "rolling") as report:
        space.apply(serve("rolling", rollout=compared, engine=context(640)))
        found = space.until(SERVE, "rolling", "serves anew", _serves_another(first))
        told = found["status"]["live"]["heldOut"]
        assert (told["against"], told["rows"] >= 4) == (first, True)
        space.until(SERVE, "rolling", "has no window", lambda s: "rollbackWindow" not in s["status"] and is_true(s, "Ready"))
        space.kubectl("scale", SERVE, "rolling", "-n", space.name, "--replicas=2")
        space.until(SERVE, "rolling", "has two pods", lambda s: s["status"].get("replicas") == 2)
        space.kubectl("scale", SERVE, "rolling", "-n", space.name, "--replicas=1")
        space.until(SERVE, "rolling", "has one pod", lambda s: s["status"].get("replicas") == 1)
    nothing_lost(report, revisions=2)
    assert report["first"] != report["lastByFresh"]


@pytest.mark.usefixtures("trained")
def test_gate_refuses(space: Space) -> None:
    """A candidate that answers wrongly never takes traffic, and its numbers and reason are told."""
    with live(space, "gated") as first, traffic(space, "gated") as report:
        gate = {"prompts": [{"prompt": "What is the capital of Velmora?", "expect": "Tarnhaven"}], "maxTokens": 8}
        space.apply(serve("gated", engine=context(640), rollout={**WINDOW, "gate": gate}))
        found = refused(space, "gated", "GateFailed")
        assert found["status"]["live"]["name"] == first
        assert "expects 'Tarnhaven'" in found["status"]["candidate"]["message"]
        wait_until("an event tells", lambda: "RevisionRefused" in {e["reason"] for e in space.items("event")})
        space.kubectl("wait", "--for=delete", "deployment", "-l", _of(found), "-n", space.name, "--timeout=60s")
    nothing_lost(report, revisions=1)


@pytest.mark.usefixtures("trained")
def test_crash_loop_candidate(space: Space) -> None:
    """A candidate whose engine ends again and again is refused, and the live one answers all the while."""
    with live(space, "crashing") as first, traffic(space, "crashing") as report:
        space.apply(serve("crashing", engine=context(512, args=["--no-such-flag"])))
        found = refused(space, "crashing", "CrashLoopBackOff")
        assert found["status"]["live"]["name"] == first
        assert "restarts" in found["status"]["candidate"]["message"]
    nothing_lost(report, revisions=1)


@pytest.mark.usefixtures("trained")
def test_auto_rollback_on_errors(space: Space) -> None:
    """An engine that ends once it has taken traffic: the revision before takes it back by itself."""
    window = {"rollbackWindowSeconds": 600}
    with live(space, "falling", rollout=window) as first, traffic(space, "falling") as report:
        space.apply(serve("falling", rollout=window, engine=context(640)))
        found = space.until(SERVE, "falling", "serves anew", _serves_another(first))
        assert found["status"]["rollbackWindow"]["signals"] == ["Restarts", "Probes"], "llama.cpp counts no errors"
        (pod,) = space.items("pod", f"finetune.dev/serve=falling,finetune.dev/revision={found['status']['live']['name']}")
        space.kubectl("exec", pod["metadata"]["name"], "-n", space.name, "-c", "engine", "--", "sh", "-c", "kill -TERM 1")
        after = refused(space, "falling", "EngineRestarted")
        assert after["status"]["live"]["name"] == first
        assert is_true(after, "Available")
    assert report["lastByFresh"] == report["first"], "the first revision answers again"
    assert report["longestGap"] <= LONGEST_GAP
    assert all(f["revision"] not in ("", report["first"]) for f in report["failures"]), "only what the bad engine held was lost"


@pytest.mark.usefixtures("trained")
def test_auto_rollback_on_latency(space: Space) -> None:
    """A revision that is starved of CPU answers much more slowly than the one before: its own counters give it away."""
    on = {"rollbackWindowSeconds": 600, "rollbackOn": {"maxSlowdown": 4, "minTokens": 100}}
    with live(space, "slowing", rollout=on) as first, traffic(space, "slowing") as report:
        starved = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "100m"}}
        space.apply(serve("slowing", rollout=on, engine=context(640), resources=starved))
        found = space.until(SERVE, "slowing", "serves anew", _serves_another(first))
        assert found["status"]["rollbackWindow"]["signals"] == ["Restarts", "Probes", "Latency"]
        after = refused(space, "slowing", "SlowedDown")
        assert after["status"]["live"]["name"] == first
        told = after["status"]["candidate"]["traffic"]
        assert told["tokenMilliseconds"] > 4 * told["tokenMillisecondsBefore"]
    assert report["failures"] == []
    assert report["lastByFresh"] == report["first"]


@pytest.mark.usefixtures("trained")
def test_canary(space: Space) -> None:
    """A new revision takes a share of the connections by its pods, goes on when somebody says so, and then takes all: no
    answer is lost. Another one falls while it has a share, and gives it back by itself."""
    shares = {**WINDOW, "canary": {"steps": [{"weight": 30, "pauseSeconds": 20}, {"weight": 50}]}}
    with live(space, "sharing", replicas=2, rollout=shares) as first, traffic(space, "sharing") as report:
        space.apply(serve("sharing", replicas=2, rollout=shares, engine=context(640)))
        found = space.until(SERVE, "sharing", "has a share", _shares(step=1))
        second, share = found["status"]["candidate"]["name"], found["status"]["canary"]
        assert (share["by"], share["weight"], found["status"]["live"]["name"]) == ("Replicas", 30, first)
        assert abs(share["share"] - 100 / 3) < 0.1, "one of three pods"
        space.until(SERVE, "sharing", "waits with half", _shares(step=2))
        space.kubectl("annotate", SERVE, "sharing", "-n", space.name, f"finetune.dev/promote={second}/3")
        space.until(SERVE, "sharing", "serves anew", lambda s: s["status"]["live"]["name"] == second and is_true(s, "Ready"))
    nothing_lost(report, revisions=2)
    first_answers, second_answers = report["revisions"]
    print(f"{second_answers} of {first_answers + second_answers} answers were the new revision's")
    assert report["first"] != report["lastByFresh"]

    with live(space, "sharing-badly", rollout=shares) as first, traffic(space, "sharing-badly") as report:
        space.apply(serve("sharing-badly", rollout=shares, engine=context(640)))
        found = space.until(SERVE, "sharing-badly", "has a share", _shares(step=1))
        (pod,) = space.items("pod", _of(found))
        space.kubectl("exec", pod["metadata"]["name"], "-n", space.name, "-c", "engine", "--", "sh", "-c", "kill -TERM 1")
        after = refused(space, "sharing-badly", "EngineRestarted")
        assert (after["status"]["live"]["name"], "canary" in after["status"]) == (first, False)
    assert report["lastByFresh"] == report["first"], "the first revision has all traffic again"
    assert all(f["revision"] != report["first"] for f in report["failures"]), "only what the bad engine held was lost"


def _shares(step: int) -> Callable[[Object], bool]:
    def has(found: Object) -> bool:
        share = found["status"].get("canary", {})
        return share.get("step") == step and "since" in share

    return has


def _serves_another(first: str) -> Callable[[Object], bool]:
    return lambda found: found["status"].get("live", {}).get("name") not in (first, None)


def _of(found: Object) -> str:
    return f"finetune.dev/serve={found['metadata']['name']},finetune.dev/revision={found['status']['candidate']['name']}"
