"""Rollouts under traffic that never stops: what is promoted, refused or taken back, and that nobody who asks notices.

The scenarios share the small trained job of test_finished.py; each has a ModelServe of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from demo.follow import is_true
from demo.kubectl import Object
from localcluster import settings
from tests.e2e import jobs, serves
from tests.e2e.serves import LONGEST_GAP, WINDOW, context, live, nothing_lost, reached, refused, serve, serves_another, traffic
from tests.e2e.space import SERVE, Space
from tests.waiting import wait_until
from transformers import AutoTokenizer

pytestmark = pytest.mark.space(serves.SHARED)


@pytest.mark.usefixtures("small_job")
def test_rollout_under_traffic(space: Space) -> None:
    """A new revision is compared with the live one and takes over, the old pods go, others come and go: no answer is lost."""
    compared = {**WINDOW, "gate": {"heldOut": {"rows": 8, "minRows": 4, "maxDrop": 0.5}, "maxTokens": 8}}
    with live(space, "rolling", rollout=compared) as first, traffic(space, "rolling") as report:
        space.apply(serve("rolling", rollout=compared, engine=context(640)))
        found = space.until(SERVE, "rolling", "serves anew", serves_another(first))
        told = found["status"]["live"]["heldOut"]
        assert (told["against"], told["rows"] >= 4) == (first, True)
        space.until(SERVE, "rolling", "has no window", lambda s: "rollbackWindow" not in s["status"] and is_true(s, "Ready"))
        space.kubectl("scale", SERVE, "rolling", "-n", space.name, "--replicas=2")
        space.until(SERVE, "rolling", "has two pods", lambda s: s["status"].get("replicas") == 2)
        space.kubectl("scale", SERVE, "rolling", "-n", space.name, "--replicas=1")
        space.until(SERVE, "rolling", "has one pod", lambda s: s["status"].get("replicas") == 1)
    nothing_lost(report, revisions=2)
    assert report["first"] != report["lastByFresh"]


@pytest.mark.usefixtures("small_job")
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


@pytest.mark.usefixtures("small_job")
def test_judge_gate(space: Space) -> None:
    """A candidate whose answers a judge likes less is refused with its win rate; asked by another rubric, it takes over.

    The judge is no model but a small program whose taste is known (judge.py), behind the OpenAI API, as any judge is.
    """
    (token,) = AutoTokenizer.from_pretrained(settings.read().hub_directory / jobs.TINY).encode(" sun", add_special_tokens=False)
    says_sun = context(640, args=["--logit-bias", f"{token}+100"])
    with judge(space), live(space, "judged") as first, traffic(space, "judged") as report:
        space.apply(serve("judged", engine=says_sun, rollout=judged_by("without.txt")))
        found = refused(space, "judged", "WorseThanLive")
        assert found["status"]["live"]["name"] == first
        worse = found["status"]["candidate"]["judged"]
        assert (worse["against"], worse["pairs"], worse["losses"], worse["calls"]) == (first, 8, 8, 16)
        assert worse["high"] < 0.5
        space.apply(serve("judged", engine=says_sun, rollout=judged_by("with.txt")))
        found = space.until(SERVE, "judged", "serves anew", serves_another(first))
        better = found["status"]["live"]["judged"]
        assert (better["against"], better["wins"], better["winRate"]) == (first, 8, 1)
    nothing_lost(report, revisions=2)


@contextmanager
def judge(space: Space) -> Iterator[None]:
    """The judge, what it asks for, and what it may be told to like."""
    program = {"judge.py": serves.TESTS / "e2e/judge.py"}
    taste = {f"{wish}.txt": f'Prefer answers {wish} the word "sun".' for wish in ("with", "without")}
    service = {"selector": {"app": "judge"}, "ports": [{"port": 8000}]}
    space.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "judge"}, "stringData": {"api-key": "s3cret"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "taste"}, "data": taste},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "judge"}, "spec": service},
        *serves.program_pod(space, "judge", program, ["judge.py", "8000", "taster", "s3cret"]),
    )
    space.kubectl("wait", "pod", "judge", "-n", space.name, "--for=condition=Ready", "--timeout=120s")
    yield
    space.delete("pod", "judge", "--wait=false")


def judged_by(rubric: str) -> Object:
    """The rollout whose gate asks the judge eight pairs, and nothing of the evaluation: the candidate answers otherwise."""
    asked = {
        "baseUrl": "http://judge:8000/v1",
        "model": "taster",
        "secretRef": {"name": "judge"},
        "rubric": {"name": "taste", "key": rubric},
        "maxCalls": 16,
        "minPairs": 8,
    }
    return {**WINDOW, "gate": {"judge": asked, "testRows": {"count": 0}, "maxTokens": 8}}


@pytest.mark.usefixtures("small_job")
def test_crash_loop_candidate(space: Space) -> None:
    """A candidate whose engine ends again and again is refused, and the live one answers all the while."""
    with live(space, "crashing") as first, traffic(space, "crashing") as report:
        space.apply(serve("crashing", engine=context(512, args=["--no-such-flag"])))
        found = refused(space, "crashing", "CrashLoopBackOff")
        assert found["status"]["live"]["name"] == first
        assert "restarts" in found["status"]["candidate"]["message"]
    nothing_lost(report, revisions=1)


@pytest.mark.usefixtures("small_job")
def test_auto_rollback_on_errors(space: Space) -> None:
    """An engine that ends once it has taken traffic: the revision before takes it back by itself."""
    window = {"rollbackWindowSeconds": 600}
    with live(space, "falling", rollout=window) as first, traffic(space, "falling") as report:
        url = serves.address(space, "falling")
        before = reached(url)
        space.apply(serve("falling", rollout=window, engine=context(640)))
        found = space.until(SERVE, "falling", "serves anew", is_watched(first))
        assert found["status"]["rollbackWindow"]["signals"] == ["Restarts", "Probes"], "llama.cpp counts no errors"
        (pod,) = space.items("pod", f"finetune.dev/serve=falling,finetune.dev/revision={found['status']['live']['name']}")
        space.kubectl("exec", pod["metadata"]["name"], "-n", space.name, "-c", "engine", "--", "sh", "-c", "kill -TERM 1")
        after = refused(space, "falling", "EngineRestarted")
        assert after["status"]["live"]["name"] == first
        assert is_true(after, "Available")
        wait_until("the node's rules lead back", lambda: reached(url) == before)
    assert report["lastByFresh"] == report["first"], "the first revision answers again"
    assert report["longestGap"] <= LONGEST_GAP
    assert report["failing"] <= LONGEST_GAP, "what the bad engine held was lost, and what came before traffic went back"
    assert all(f["revision"] != report["first"] for f in report["failures"])


@pytest.mark.usefixtures("small_job")
def test_auto_rollback_on_latency(space: Space) -> None:
    """A revision that is starved of CPU answers much more slowly than the one before: its own counters give it away."""
    on = {"rollbackWindowSeconds": 600, "rollbackOn": {"maxSlowdown": 4, "minTokens": 100}}
    with live(space, "slowing", rollout=on) as first, traffic(space, "slowing") as report:
        starved = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "100m"}}
        space.apply(serve("slowing", rollout=on, engine=context(640), resources=starved))
        found = space.until(SERVE, "slowing", "serves anew", is_watched(first))
        assert found["status"]["rollbackWindow"]["signals"] == ["Restarts", "Probes", "Latency"]
        after = refused(space, "slowing", "SlowedDown")
        assert after["status"]["live"]["name"] == first
        told = after["status"]["candidate"]["traffic"]
        assert told["tokenMilliseconds"] > 4 * told["tokenMillisecondsBefore"]
    assert report["failures"] == []
    assert report["lastByFresh"] == report["first"]


@pytest.mark.usefixtures("small_job")
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
        promoted = space.until(SERVE, "sharing", "serves anew", is_watched(first))
        assert promoted["status"]["live"]["name"] == second
        space.until(SERVE, "sharing", "has no window", lambda s: "rollbackWindow" not in s["status"])
    nothing_lost(report, revisions=2)
    first_answers, second_answers = report["revisions"]
    print(f"{second_answers} of {first_answers + second_answers} answers were the new revision's")
    assert report["first"] != report["lastByFresh"]

    with live(space, "sharing-badly", rollout=shares) as first, traffic(space, "sharing-badly") as report:
        url = serves.address(space, "sharing-badly")
        before = reached(url)
        space.apply(serve("sharing-badly", rollout=shares, engine=context(640)))
        found = space.until(SERVE, "sharing-badly", "has a share", _shares(step=1))
        (pod,) = space.items("pod", _of(found))
        space.kubectl("exec", pod["metadata"]["name"], "-n", space.name, "-c", "engine", "--", "sh", "-c", "kill -TERM 1")
        after = refused(space, "sharing-badly", "EngineRestarted")
        assert (after["status"]["live"]["name"], "canary" in after["status"]) == (first, False)
        wait_until("all lead back", lambda: {reached(url) for _ in range(10)} == {before})
    assert report["lastByFresh"] == report["first"], "the first revision has all traffic again"
    assert all(f["revision"] != report["first"] for f in report["failures"]), "only what the bad engine held was lost"


def _shares(step: int) -> Callable[[Object], bool]:
    def has(found: Object) -> bool:
        share = found["status"].get("canary", {})
        return share.get("step") == step and "since" in share

    return has


def is_watched(first: str) -> Callable[[Object], bool]:
    """Another revision than this serves, and its rollback window is open."""
    return lambda found: serves_another(first)(found) and "rollbackWindow" in found["status"]


def _of(found: Object) -> str:
    return f"finetune.dev/serve={found['metadata']['name']},finetune.dev/revision={found['status']['candidate']['name']}"
