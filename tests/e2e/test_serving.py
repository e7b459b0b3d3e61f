"""What serves, and what happens to those who ask when pods end, room is short, or strangers come.

The scenarios share the small trained job of test_finished.py; each has a ModelServe of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
from demo.follow import condition, is_true
from demo.kubectl import Object
from localcluster.settings import NODE_NAME
from tests.e2e import policies, serves
from tests.e2e.serves import context, live, nothing_lost, serve, serves_another, traffic
from tests.e2e.space import SERVE, Space
from tests.waiting import lasts, wait_until

pytestmark = [pytest.mark.space(serves.SHARED), pytest.mark.usefixtures("small_job")]
NVIDIA, AMD = "nvidia.com/gpu", "amd.com/gpu"
LONG = 1500  # tokens of an answer that takes seconds, even of a tiny model


# ── Drain ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_drain_streams(space: Space) -> None:
    """A pod that is deleted, and one that a rollout replaces, finish what they answer, and tell whoever keeps a connection."""
    wide, now = {"drain": {"seconds": 30}, "engine": context(2048)}, {"rollbackWindowSeconds": 0}
    with live(space, "draining", **wide, rollout=now) as first, traffic(space, "draining") as report:
        (pod,) = serving_pods(space, "draining")
        delete = lambda: space.delete("pod", pod, "--wait=false")  # noqa: E731
        asyncio.run(drained(chat(space, "draining"), "draining", delete))
        space.until(SERVE, "draining", "is whole again", lambda s: is_true(s, "Ready") and s["status"].get("replicas") == 1)
        wait_until("the deleted pod is gone", lambda: pod not in serving_pods(space, "draining"))

        another = serve("draining", **{**wide, "engine": context(1792)}, rollout=now)
        space.apply(another)
        asyncio.run(drained(chat(space, "draining"), "draining", lambda: promoted(space, "draining", first)))
    nothing_lost(report, revisions=2)


def promoted(space: Space, name: str, first: str) -> None:
    space.until(SERVE, name, "serves anew", serves_another(first))


def serving_pods(space: Space, name: str) -> list[str]:
    """Names of all pods of its revisions, also of those that end."""
    return [p["metadata"]["name"] for p in space.items("pod", f"finetune.dev/serve={name},finetune.dev/revision")]


def chat(space: Space, name: str) -> str:
    """URL where a conversation is answered."""
    return f"{serves.address(space, name)}/v1/chat/completions"


async def drained(url: str, model: str, ending: Callable[[], None]) -> None:
    """While the pod that answers is ended: a stream on one connection, and short questions on another that is kept."""
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession() as streams, aiohttp.ClientSession(connector=connector) as kept:
        assert await told(kept, url, model) != "close"
        ended = asyncio.get_running_loop().run_in_executor(None, ending)
        unbroken = asyncio.create_task(one_after_the_other(streams, url, model, ended))
        async with asyncio.timeout(300):
            while await told(kept, url, model) != "close":
                await lasts(0.1)
            assert await unbroken >= 1, "no stream was on its way as the pod was told to end"
        await ended


async def one_after_the_other(session: aiohttp.ClientSession, url: str, model: str, ended: asyncio.Future[None]) -> int:
    """Streams of LONG tokens until one began after the end was asked for; how many were on their way just then."""
    crossing = 0
    while not ended.done():
        async with session.post(url, json=question(model, LONG, stream=True)) as response:
            assert response.status == 200
            text = await response.text()
        pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        assert "data: [DONE]" in text
        assert pieces[-1]["usage"]["completion_tokens"] == LONG
        crossing += ended.done()
    return crossing


async def told(session: aiohttp.ClientSession, url: str, model: str) -> str:
    """What the answer to a short question says of its connection."""
    async with session.post(url, json=question(model, 1)) as response:
        assert response.status == 200
        await response.read()
        return response.headers.get("Connection", "")


def question(model: str, tokens: int, **more: Any) -> Object:
    """llama.cpp goes on to the last token where it is told to pass over the end."""
    messages, counted = [{"role": "user", "content": "Tell me all."}], {"stream_options": {"include_usage": True}}
    return {"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": True, **counted, **more}


# ── Room ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def one_gpu(space: Space) -> Iterator[None]:
    """The node says that it has a GPU of each make. None is there: the scheduler counts them, and llama.cpp's build for CPUs
    runs. Two makes, so that neither of two ModelServes takes the room that the other makes.
    """
    patch_node(space, {NVIDIA: "1", AMD: "1"})
    yield
    patch_node(space, {NVIDIA: None, AMD: None})


def patch_node(space: Space, resources: dict[str, str | None]) -> None:
    """Change what the node says it has."""
    patch = json.dumps({"status": dict.fromkeys(("capacity", "allocatable"), resources)})
    space.kubectl("patch", "node", NODE_NAME, "--subresource=status", "--type=merge", "-p", patch)


@pytest.mark.usefixtures("one_gpu")
def test_no_spare_gpu(space: Space) -> None:
    """Two ModelServes hold all GPUs. One may not be stopped: its next revision waits and says what would help, until there is
    a GPU more. The other may, so the next takes its place, after the event that foretells how long nothing answers.
    """
    patient, brisk = on_gpu(NVIDIA), on_gpu(AMD) | {"rollout": {"rollbackWindowSeconds": 0, "maxDowntimeSeconds": 900}}
    with (
        live(space, "patient", **patient) as first,
        live(space, "brisk", **brisk) as former,
        traffic(space, "patient") as report,
    ):
        space.apply(serve("patient", **patient, engine=context(640)), serve("brisk", **brisk, engine=context(640)))
        space.until(SERVE, "brisk", "serves anew", serves_another(former))
        (event,) = [e for e in space.items("event") if e["reason"] == "Recreating"]
        assert "nothing answers for about" in event["message"]

        waits = space.until(SERVE, "patient", "is Stalled", lambda s: condition(s, "Stalled"))
        assert (condition(waits, "Stalled") or {})["reason"] == "Unschedulable"
        assert is_true(waits, "Available")
        assert waits["status"]["live"]["name"] == first
        candidate = waits["status"]["candidate"]
        assert candidate["strategy"] == "Surge"
        assert "maxDowntimeSeconds of" in candidate["strategyMessage"]
        patch_node(space, {NVIDIA: "2"})
        space.until(SERVE, "patient", "serves anew", serves_another(first))
    nothing_lost(report, revisions=2)


def on_gpu(resource: str) -> Object:
    return {"parallelism": {"gpus": True, "gpu": {"resourceName": resource}}}


# ── Nobody asks ───────────────────────────────────────────────────────────────────────────────────────────────────────


IDLE = 15  # seconds without a request, after which pods go
AT_ONCE = 6


def test_scale_to_zero(space: Space) -> None:
    """While nobody asks there is no pod. Many who ask at once are all held, and answered by one pod. Then a new revision takes
    over behind the gateway, under traffic. In the end each comes as the pods are about to go, or have just gone.
    """
    doze = {"autoscaling": dozing(IDLE), "rollout": {"rollbackWindowSeconds": 0}, "engine": context(2048)}
    with live(space, "dozing", **doze) as first:
        asleep(space, "dozing")
        took = asyncio.run(asked_at_once(chat(space, "dozing"), "dozing", AT_ONCE))
        print(f"{AT_ONCE} requests were held for {min(took):.0f} to {max(took):.0f} s")
        space.apply(serve("dozing", **{**doze, "autoscaling": dozing(3600)}))
        awake = space.until(SERVE, "dozing", "is Ready", lambda s: is_true(s, "Ready") and s["status"].get("replicas") == 1)
        assert awake["status"]["live"]["name"] == first, "it is the same revision"
        with traffic(space, "dozing") as report:
            space.apply(serve("dozing", **{**doze, "autoscaling": dozing(3600), "engine": context(1792)}))
            space.until(SERVE, "dozing", "serves anew", serves_another(first))
        nothing_lost(report, revisions=2)

        space.apply(serve("dozing", **{**doze, "engine": context(1792)}))
        asleep(space, "dozing")
        for pause in (0, IDLE, IDLE + 2, IDLE + 4):
            asyncio.run(lasts(pause))
            (waited,) = asyncio.run(asked_at_once(chat(space, "dozing"), "dozing", 1))
            print(f"after {pause} s without a request the next one took {waited:.1f} s")
        asleep(space, "dozing")


def dozing(idle: int) -> Object:
    return {"minReplicas": 0, "maxReplicas": 1, "idleSeconds": idle, "holdSeconds": 300}


def asleep(space: Space, name: str) -> None:
    """Nobody asks, and there is no pod; a request would be answered all the same."""
    found = space.until(SERVE, name, "sleeps", lambda s: (condition(s, "Ready") or {}).get("reason") == "ScaledToZero")
    assert is_true(found, "Ready")
    assert is_true(found, "Available")
    wait_until("its pods are gone", lambda: serving_pods(space, name) == [])


async def asked_at_once(url: str, model: str, count: int) -> list[float]:
    """Seconds until each of so many, plain ones and streams, was answered."""
    limit = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=limit) as session:
        return await asyncio.gather(*(seconds_to_answer(session, url, model, stream=n % 2 == 1) for n in range(count)))


async def seconds_to_answer(session: aiohttp.ClientSession, url: str, model: str, *, stream: bool) -> float:
    begun = asyncio.get_running_loop().time()
    async with session.post(url, json=question(model, 4, stream=stream)) as response:
        text = await response.text()
        assert response.status == 200, text
        assert not stream or "data: [DONE]" in text
    return asyncio.get_running_loop().time() - begun


# ── Who may ask ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_network_policy(space: Space, make_space: Callable[[str], Space]) -> None:
    """Pods of the namespace reach a model where it takes requests and nowhere else; strangers reach it once they are named.

    The local cluster's network (CNI ptp) enforces no policies, and no plugin that does can be had here. So the policies that
    the operator has applied are judged by policies.py, over the pods that run.
    """
    other = make_space("e2e-strangers")
    with live(space, "guarded"):
        served, neighbour, stranger = serving_pod(space, "guarded"), bystander(space), bystander(other)
        front, engine = (container_port(served, name) for name in ("http", "engine"))
        network = policies.read(space.kubectl)
        assert network.may_reach(neighbour, served, front)
        assert not network.may_reach(neighbour, served, engine), "past the front"
        assert not network.may_reach(stranger, served, front)
        assert not network.may_reach(served, neighbour, 80), "its model lies on a claim: it has nobody to ask"
        assert network.may_reach(neighbour, stranger, 80), "others are left alone"

        named = {"allowFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": other.name}}}]}
        space.apply(serve("guarded", network=named))
        wait_until("who is named may ask", lambda: policies.read(space.kubectl).may_reach(stranger, served, front))
        assert not policies.read(space.kubectl).may_reach(stranger, served, engine)

        space.apply(serve("guarded", network={"policy": False}))
        wait_until("all may ask", lambda: policies.read(space.kubectl).may_reach(stranger, served, engine))
        assert serving_pod(space, "guarded")["metadata"]["uid"] == served["metadata"]["uid"], "no pod was started for that"


def serving_pod(space: Space, name: str) -> Object:
    (pod,) = space.items("pod", f"finetune.dev/serve={name},finetune.dev/revision")
    return pod


def bystander(space: Space) -> Object:
    """A pod of a namespace, as its policies see it; none has to run for that."""
    return {
        "metadata": {"name": "bystander", "namespace": space.name, "labels": {"app": "bystander"}},
        "spec": {"containers": []},
    }


def container_port(pod: Object, name: str) -> int:
    (found,) = [p["containerPort"] for c in pod["spec"]["containers"] for p in c.get("ports", []) if p["name"] == name]
    return int(found)
