"""A gateway holds requests until a pod is there, on real sockets: none is lost, and others are told when to ask again."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from tests.listening import free_ports
from tests.waiting import lasts

from finetune_trainer.contract.gateway import PATH, GatewayState
from finetune_trainer.serving import gateway
from finetune_trainer.serving.gateway import Gateway, Holding

SOON = 20.0  # seconds in which what is to happen has happened, on a busy machine
ASK = "/v1/chat/completions"


@dataclass
class Pod:
    """What serves, once it is there. It tells how many bytes it was asked with, and streams as it is let."""

    port: int
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        return web.json_response({"bytes": len(await request.read())})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first ")
        await self.go_on.wait()
        await response.write(b"last")
        return response

    @asynccontextmanager
    async def there(self) -> AsyncIterator[None]:
        """For as long as the block runs."""
        application = web.Application(client_max_size=1 << 30)
        application.router.add_post("/stream", self.stream)
        application.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        try:
            yield
        finally:
            await runner.cleanup()


@dataclass
class Scene:
    pod: Pod
    gateway: Gateway
    url: str
    caller: aiohttp.ClientSession

    async def ask(self, body: bytes = b"{}", **headers: str) -> tuple[int, str]:
        """Status, and Retry-After or what was answered."""
        async with self.caller.post(self.url + ASK, data=body, headers=headers) as found:
            return found.status, found.headers.get("Retry-After") or str((await found.json())["bytes"])

    async def holds(self, count: int) -> None:
        """Wait until it holds so many."""
        async with asyncio.timeout(SOON):
            while self.gateway.held != count:
                await lasts(0.01)

    async def state(self) -> GatewayState:
        async with self.caller.get(self.url + PATH) as found:
            return GatewayState.model_validate(await found.json())


def run(story: Callable[[Scene], Awaitable[None]], seconds: float = SOON, most: int = 5, key: str | None = None) -> None:
    """A story before a gateway, whose pod is not there yet."""

    async def told() -> None:
        pod = Pod(free_ports()[0])
        holding = Holding("bot", seconds, most, key)
        async with (
            gateway.standing(0, f"http://127.0.0.1:{pod.port}", holding, "127.0.0.1") as (stands, runner),
            aiohttp.ClientSession() as caller,
        ):
            await story(Scene(pod, stands, f"http://127.0.0.1:{runner.addresses[0][1]}", caller))

    asyncio.run(asyncio.wait_for(told(), 3 * SOON))


@pytest.mark.parametrize("size", [2, 1 << 20])
def test_requests_are_held_until_a_pod_is_there_and_go_on_whole(size: int) -> None:
    async def story(scene: Scene) -> None:
        held = [asyncio.create_task(scene.ask(b"x" * size)) for _ in range(3)]
        await scene.holds(3)
        assert (await scene.state()).model_dump(include={"held", "running"}) == {"held": 3, "running": 3}
        async with scene.pod.there():
            assert await asyncio.gather(*held) == [(200, str(size))] * 3
            assert await scene.ask() == (200, "2"), "with the pod there nothing is held"
        assert scene.pod.asked.count(ASK) == 4, "none is asked twice"
        assert scene.pod.asked.count("/health") == 1, "one look for all"
        assert (await scene.state()).model_dump(include={"held", "running"}) == {"held": 0, "running": 0}

    run(story)


def test_a_request_between_two_pods_is_held_as_well() -> None:
    async def story(scene: Scene) -> None:
        async with scene.pod.there():
            assert await scene.ask() == (200, "2")
        held = asyncio.create_task(scene.ask())
        await scene.holds(1)
        async with scene.pod.there():
            assert await held == (200, "2")

    run(story)


def test_a_pod_that_is_not_ready_yet_is_waited_for() -> None:
    async def story(scene: Scene) -> None:
        answers = iter((503, 200))

        async def health(_: web.Request) -> web.Response:
            return web.Response(status=next(answers))

        held = asyncio.create_task(scene.ask())
        await scene.holds(1)
        application = web.Application()
        application.router.add_get("/health", health)
        application.router.add_post(ASK, scene.pod.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", scene.pod.port).start()
        assert await held == (200, "2")
        assert next(answers, None) is None
        await runner.cleanup()

    run(story)


def test_more_than_it_holds_are_told_to_ask_again() -> None:
    async def story(scene: Scene) -> None:
        held = [asyncio.create_task(scene.ask()) for _ in range(2)]
        await scene.holds(2)
        assert await scene.ask() == (429, "10")
        async with scene.pod.there():
            assert [status for status, _ in await asyncio.gather(*held)] == [200, 200]

    run(story, most=2)


def test_who_was_held_for_too_long_is_told_to_ask_again() -> None:
    async def story(scene: Scene) -> None:
        assert await scene.ask() == (503, "10")
        assert (scene.gateway.held, scene.gateway.asked) == (0, 0)

    run(story, seconds=0.2)


def test_who_has_gone_is_held_no_more() -> None:
    async def story(scene: Scene) -> None:
        held = asyncio.create_task(scene.ask())
        await scene.holds(1)
        held.cancel()
        await scene.holds(0)
        assert scene.gateway.asked == 0

    run(story)


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), (PATH, 200), ("/v1/models", 200), ("/v1/models/bot", 503), ("/metrics", 503)]
)
def test_who_only_looks_wakes_nobody(path: str, status: int) -> None:
    async def story(scene: Scene) -> None:
        async with scene.caller.get(scene.url + path) as found:
            assert found.status == status
            if path == "/v1/models":
                assert [card["id"] for card in (await found.json())["data"]] == ["bot"]
        assert scene.gateway.held == 0
        async with scene.pod.there(), scene.caller.get(scene.url + path) as found:
            assert found.status == 200
        own = path in ("/health", PATH)
        assert (path in scene.pod.asked) is not own, "with a pod there it answers all but what is the gateway's own"

    run(story)


def test_nobody_wakes_it_without_its_key() -> None:
    async def story(scene: Scene) -> None:
        for key in ({}, {"Authorization": "Bearer wrong"}):
            async with scene.caller.post(scene.url + ASK, data=b"{}", headers=key) as found:
                assert found.status == 401
            async with scene.caller.get(f"{scene.url}/v1/models", headers=key) as found:
                assert found.status == 401
        held = asyncio.create_task(scene.ask(Authorization="Bearer right"))
        await scene.holds(1)
        async with scene.pod.there():
            assert await held == (200, "2")

    run(story, key="right")


def test_it_is_idle_since_the_last_answer_ended() -> None:
    async def story(scene: Scene) -> None:
        async with scene.pod.there():
            scene.gateway.quiet_since -= 100
            assert (await scene.state()).idle_seconds >= 100, "looking at it is no request"
            async with scene.caller.get(f"{scene.url}/v1/models"):
                assert (await scene.state()).idle_seconds >= 100, "nor is looking at the model"
            async with scene.caller.post(f"{scene.url}/stream") as found:
                await found.content.readany()
                state = await scene.state()
                assert (state.running, state.held, state.idle_seconds) == (1, 0, 0.0)
                scene.pod.go_on.set()
                assert await found.content.read() == b"last"
            state = await scene.state()
            assert state.running == 0
            assert state.idle_seconds < 100

    run(story)


def test_the_program_ends_what_it_holds_at_sigterm() -> None:
    """Told to end while it holds a request, it passes that one on once there is a pod, and ends well."""
    pod_port, port = free_ports(2)

    async def told() -> None:
        command = ["-m", "finetune_trainer.serving.gateway", "--port", str(port), "--to", f"http://127.0.0.1:{pod_port}"]
        command += ["--model", "bot", "--hold", "60", "--most", "5", "--drain", "60"]
        program = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
        assert program.stdout is not None
        assert b"leads to" in await program.stdout.readline()
        async with aiohttp.ClientSession() as caller:
            asked = asyncio.create_task(caller.post(f"http://127.0.0.1:{port}{ASK}", data=b"{}"))
            held = 0
            while not held:
                await lasts(0.01)
                async with caller.get(f"http://127.0.0.1:{port}{PATH}") as found:
                    held = (await found.json())["held"]
            program.send_signal(signal.SIGTERM)
            assert b"1 requests are being answered" in await program.stdout.readline()
            async with Pod(pod_port).there(), await asked as found:
                assert (found.status, found.headers["Connection"]) == (200, "close")
            assert await program.wait() == 0

    asyncio.run(asyncio.wait_for(told(), 3 * SOON))
