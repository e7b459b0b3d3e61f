"""Answers that a front keeps in a real Redis: what is given again, to whom, until when, and what happens where it is away."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests import redis_server
from tests.redis_server import RedisServer
from tests.waiting import lasts

from finetune_trainer.serving import front
from finetune_trainer.serving.kept import HEADER, METRIC, Cache

CHAT = "/v1/chat/completions"
SAID = [{"role": "user", "content": "Hello!"}]
ASKED = {"model": "facts", "messages": SAID, "temperature": 0}
SOON = 60.0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with redis_server.started(tmp_path_factory.mktemp("redis"), "127.0.0.1", port) as server:
        yield server


@dataclass
class Engine:
    """Gives each answer a number of its own, so that it is seen which one was given again."""

    answers: int = 0
    status: int = 200
    end: str = "data: [DONE]\n\n"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.answers += 1
        text = json.dumps({"id": self.answers, "choices": []})
        if not (await request.json()).get("stream"):
            return web.Response(text=text, status=self.status, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in (f"data: {text}\n\n", self.end):
            await response.write(piece.encode())
        return response

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(text="its_own 1\n")


@dataclass
class Pod:
    """A front of one revision, as callers see it."""

    url: str
    engine: Engine
    caller: aiohttp.ClientSession

    async def asked(self, key: str = "a", headers: dict[str, str] | None = None, **more: Any) -> tuple[str | None, str]:
        """What the answer's header says of the cache, and the answer."""
        sent = {"Authorization": f"Bearer {key}", **(headers or {})}
        async with self.caller.post(self.url + CHAT, json={**ASKED, **more}, headers=sent) as found:
            return found.headers.get(HEADER), await found.text()

    async def counted(self) -> dict[str, int]:
        async with self.caller.get(f"{self.url}/metrics") as found:
            lines = (await found.text()).splitlines()
        assert "its_own 1" in lines
        return {line.split('"')[1]: int(line.rpartition(" ")[2]) for line in lines if line.startswith(METRIC)}


@dataclass
class Scene:
    redis: str
    stack: list[Any] = field(default_factory=list)

    @asynccontextmanager
    async def pod(self, revision: str = "r1", own_key: str = "", seconds: int = 60, **engine: Any) -> AsyncIterator[Pod]:
        made, application = Engine(**engine), web.Application()
        application.router.add_post(CHAT, made.answer)
        application.router.add_get("/metrics", made.metrics)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        behind = f"http://127.0.0.1:{runner.addresses[0][1]}"
        cache = Cache(self.redis, (revision, own_key), seconds)
        async with front.standing(0, behind, "127.0.0.1", cache=cache) as (_, stands), aiohttp.ClientSession() as caller:
            yield Pod(f"http://127.0.0.1:{stands.addresses[0][1]}", made, caller)
        await runner.cleanup()


def told(url: str, story: Callable[[Scene], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(Scene(url)), SOON))


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_asked_again_is_answered_by_any_pod_of_the_revision(redis: RedisServer, stream: bool) -> None:
    async def story(scene: Scene) -> None:
        async with scene.pod(f"again-{stream}") as one, scene.pod(f"again-{stream}") as other:
            state, answer = await one.asked(stream=stream)
            assert state == "miss"
            assert await one.asked(stream=stream) == ("hit", answer)
            assert await other.asked(stream=stream) == ("hit", answer), "with all its events"
            assert (one.engine.answers, other.engine.answers) == (1, 0)
            assert await one.counted() == {"hit": 1, "miss": 1, "passed": 0, "error": 0}

    told(redis.url, story)


@pytest.mark.parametrize(
    "other",
    [
        {"key": "b"},
        {"messages": [*SAID, *SAID]},
        {"max_tokens": 7},
        {"stream": True},
        {"temperature": 0.1},
        {"temperature": None},
        {"temperature": False},
        {"n": 2},
        {"headers": {"Cache-Control": "no-store"}},
    ],
)
def test_another_question_or_caller_has_another_answer(redis: RedisServer, other: dict[str, Any]) -> None:
    async def story(scene: Scene) -> None:
        async with scene.pod(f"other-{other}") as pod:
            await pod.asked()
            assert (await pod.asked(**other))[0] != "hit"
            assert pod.engine.answers == 2

    told(redis.url, story)


def test_neither_another_revision_nor_a_changed_key_finds_it(redis: RedisServer) -> None:
    async def story(scene: Scene) -> None:
        for revision, own_key in (("before", "a"), ("after", "a"), ("before", "b")):
            async with scene.pod(revision, own_key) as pod:
                assert (await pod.asked())[0] == "miss"

    told(redis.url, story)


def test_an_answer_goes_after_its_time(redis: RedisServer) -> None:
    async def story(scene: Scene) -> None:
        async with scene.pod("short", seconds=1) as pod:
            assert (await pod.asked())[0] == "miss"
            assert (await pod.asked())[0] == "hit"
            async with asyncio.timeout(SOON / 2):
                while (await pod.asked())[0] == "hit":
                    await lasts(0.1)

    told(redis.url, story)


@pytest.mark.parametrize(
    ("stream", "engine"),
    [(False, {"status": 500}), (True, {"end": ""}), (True, {"end": 'data: {"error": "out of memory"}\n\ndata: [DONE]\n\n'})],
)
def test_errors_and_halves_are_not_kept(redis: RedisServer, stream: bool, engine: dict[str, Any]) -> None:
    async def story(scene: Scene) -> None:
        async with scene.pod(f"bad-{engine}", **engine) as pod:
            for _ in range(2):
                assert (await pod.asked(stream=stream))[0] == "miss"
            assert pod.engine.answers == 2

    told(redis.url, story)


def test_nothing_in_redis_tells_what_was_asked_or_by_whom(redis: RedisServer) -> None:
    async def story(scene: Scene) -> None:
        async with scene.pod("secret") as pod:
            await pod.asked(key="s3cret-key")
        from redis import asyncio as client

        async with client.from_url(redis.url) as found:
            keys = [key async for key in found.scan_iter()]
            lies = [*keys, *[await found.get(key) for key in keys]]
        assert lies
        assert not any(word in str(lies) for word in ("s3cret-key", "Hello!"))

    told(redis.url, story)


def test_without_redis_the_engine_answers(redis: RedisServer) -> None:
    """Redis hangs; then nobody is there at all."""

    async def hangs(scene: Scene) -> None:
        async with scene.pod("hangs") as pod:
            await pod.asked()
            redis.process.send_signal(signal.SIGSTOP)
            try:
                async with asyncio.timeout(5):
                    for _ in range(5):
                        assert (await pod.asked())[0] == "miss"
            finally:
                redis.process.send_signal(signal.SIGCONT)
            assert pod.engine.answers == 6
            assert (await pod.counted())["error"] == 1, "it is left alone for a while"

    async def nobody(scene: Scene) -> None:
        async with scene.pod("nobody") as pod:
            for _ in range(3):
                assert (await pod.asked())[0] == "miss"
            assert pod.engine.answers == 3

    told(redis.url, hangs)
    told("redis://127.0.0.1:1/0", nobody)
    told("no url", nobody)
