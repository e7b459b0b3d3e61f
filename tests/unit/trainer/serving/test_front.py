"""What stands before an engine that can't drain: everything passes through it, and at its end nobody loses an answer."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from tests import vllm_contract
from yarl import URL

from finetune_trainer.contract.served_adapters import PATH, LoadedAdapter, PodAdapters
from finetune_trainer.serving import front
from finetune_trainer.serving.front import Front
from finetune_trainer.serving.named import Adapters

SOON = 10.0  # seconds in which what is to happen has happened, on a busy machine


@dataclass
class Engine:
    """Tells what it was asked, streams as it is let, and breaks off at /broken."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # a caller of /stream was gone before the end

    async def echo(self, request: web.Request) -> web.Response:
        told = {"method": request.method, "path": request.raw_path, "headers": dict(request.headers)}
        return web.json_response(told | {"body": await request.text()}, status=418, headers={"X-Engine": "it"})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first ")
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        await response.write(b"last")
        return response

    async def broken(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first ")
        assert request.transport is not None
        request.transport.abort()
        return response


@asynccontextmanager
async def engine() -> AsyncIterator[tuple[Engine, str]]:
    """The engine, and its URL."""
    made, application = Engine(), web.Application()
    application.router.add_post("/stream", made.stream)
    application.router.add_post("/broken", made.broken)
    application.router.add_route("*", "/{path:.*}", made.echo)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield made, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@dataclass
class Scene:
    engine: Engine
    front: Front
    url: str
    caller: aiohttp.ClientSession  # keeps its connections


def run(story: Callable[[Scene], Awaitable[None]], url: str | None = None, adapters: Adapters | None = None) -> None:
    """A story with an engine, its front, and a caller; with `url` the front leads there."""

    async def told() -> None:
        async with (
            engine() as (made, address),
            front.standing(0, url or address, "127.0.0.1", adapters) as (stands, runner),
            aiohttp.ClientSession() as caller,
        ):
            await story(Scene(made, stands, f"http://127.0.0.1:{runner.addresses[0][1]}", caller))

    asyncio.run(asyncio.wait_for(told(), 2 * SOON))


def test_all_passes_but_what_belongs_to_a_connection() -> None:
    async def story(scene: Scene) -> None:
        headers = {"Authorization": "Bearer x", "Connection": "keep-alive, X-Hop", "X-Hop": "1", "Content-Type": "text/plain"}
        url = URL(f"{scene.url}/v1/a%20b?c=d%2Fe&f", encoded=True)
        async with scene.caller.put(url, data="ä body", headers=headers) as found:
            told = await found.json()
        assert (found.status, found.headers["X-Engine"]) == (418, "it")
        assert (told["method"], told["path"], told["body"]) == ("PUT", "/v1/a%20b?c=d%2Fe&f", "ä body")
        passed = {name.lower() for name in told["headers"]}
        assert {"authorization", "content-length", "content-type"} <= passed
        assert "x-hop" not in passed

    run(story)


def test_a_stream_comes_as_the_engine_sends_it() -> None:
    async def story(scene: Scene) -> None:
        async with scene.caller.post(f"{scene.url}/stream") as found:
            assert await found.content.readany() == b"first ", "the engine sends no more until it is let"
            scene.engine.go_on.set()
            assert await found.content.read() == b"last"

    run(story)


def test_draining_ends_what_is_answered_and_tells_whoever_keeps_a_connection() -> None:
    async def story(scene: Scene) -> None:
        async with scene.caller.post(f"{scene.url}/stream") as found:
            await found.content.readany()
            async with scene.caller.get(f"{scene.url}/before") as before:
                assert "Connection" not in before.headers
            drained = asyncio.create_task(scene.front.drained(SOON, quiet=0.0))
            async with scene.caller.get(f"{scene.url}/perhaps"):
                assert scene.front.is_draining
            async with scene.caller.get(f"{scene.url}/meanwhile") as meanwhile:
                assert meanwhile.headers["Connection"] == "close"
            assert not drained.done(), "an answer is still on its way"
            scene.engine.go_on.set()
            assert await found.content.read() == b"last"
        await drained

    run(story)


def test_draining_waits_while_somebody_comes_and_not_for_probes() -> None:
    async def story(scene: Scene) -> None:
        await asyncio.gather(scene.front.drained(SOON, quiet=0.0))
        scene.front.is_draining = False
        drained = asyncio.create_task(scene.front.drained(seconds=0.5, quiet=SOON))
        async with scene.caller.get(f"{scene.url}/health"):
            assert scene.front.came == 0.0
        async with scene.caller.post(f"{scene.url}/v1/completions"):
            assert scene.front.came > 0.0
        await drained  # when its time is over

    run(story)


def test_callers_are_told_to_ask_again_where_no_engine_answers() -> None:
    async def story(scene: Scene) -> None:
        async with scene.caller.post(f"{scene.url}/v1/completions") as found:
            assert (found.status, found.headers["Retry-After"]) == (503, "1")
            assert "engine" in (await found.json())["error"]["message"]

    run(story, url="http://127.0.0.1:1")


def test_half_an_answer_does_not_look_whole() -> None:
    async def story(scene: Scene) -> None:
        with pytest.raises(aiohttp.ClientError):
            async with scene.caller.post(f"{scene.url}/broken") as found:
                await found.read()

    run(story)


def test_the_engine_need_not_answer_whoever_is_gone() -> None:
    async def story(scene: Scene) -> None:
        async with scene.caller.post(f"{scene.url}/stream") as found:
            await found.content.readany()
            found.close()
        await asyncio.wait_for(scene.engine.left.wait(), SOON)

    run(story)


def test_the_program_drains_at_sigterm() -> None:
    """A stream that is on its way when the program is told to end, as a pod is, is whole, and the program ends well."""

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def told() -> None:
        async with engine() as (made, address), aiohttp.ClientSession() as caller:
            command = [sys.executable, "-m", "finetune_trainer.serving.front", "--port", str(port), "--engine", address]
            program = await asyncio.create_subprocess_exec(*command, "--drain", "3", stdout=asyncio.subprocess.PIPE)
            assert program.stdout is not None
            assert b"leads to" in await program.stdout.readline()
            async with caller.post(f"http://127.0.0.1:{port}/stream") as found:
                await found.content.readany()
                program.send_signal(signal.SIGTERM)
                assert b"1 requests are being answered" in await program.stdout.readline()
                made.go_on.set()
                assert await found.content.read() == b"last"
            assert await program.wait() == 0

    asyncio.run(asyncio.wait_for(told(), 3 * SOON))


# ── Adapters ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def adapters(tmp_path: Path) -> Adapters:
    """What a keeper has told: `tickets` is loaded, and another adapter of that name is tried."""
    (tmp_path / "names.json").write_text(json.dumps({"tickets": "tickets@12345678"}))
    state = PodAdapters(
        version="1", settled=True, adapters=(LoadedAdapter(engine_name="tickets@12345678", trial="t", loaded=True),)
    )
    (tmp_path / "state.json").write_text(state.model_dump_json(by_alias=True))
    return Adapters(tmp_path)


@pytest.mark.parametrize(
    ("asked", "engine"),
    [
        ({"model": "tickets", "prompt": "ä", "n": 1}, {"model": "tickets@12345678", "prompt": "ä", "n": 1}),
        ({"model": "base", "prompt": "a"}, {"model": "base", "prompt": "a"}),
        ({"model": ["tickets"]}, {"model": ["tickets"]}),
        ({"prompt": "a"}, {"prompt": "a"}),
        ([1], [1]),
    ],
)
def test_the_name_of_an_adapter_leads_to_what_the_engine_calls_it(adapters: Adapters, asked: object, engine: object) -> None:
    async def story(scene: Scene) -> None:
        async with scene.caller.post(f"{scene.url}/v1/completions", json=asked) as found:
            told = await found.json()
        assert json.loads(told["body"]) == engine
        assert int(told["headers"]["Content-Length"]) == len(told["body"].encode())

    run(story, adapters=adapters)


@pytest.mark.parametrize("body", ["no json", "", "{", "[" * 100000])
def test_what_can_not_be_read_is_left_to_the_engine(adapters: Adapters, body: str) -> None:
    async def story(scene: Scene) -> None:
        headers = {"Content-Type": "application/json"}
        async with scene.caller.post(f"{scene.url}/v1/completions", data=body, headers=headers) as found:
            assert (await found.json())["body"] == body

    run(story, adapters=adapters)


def test_a_form_is_passed_on_as_it_is(adapters: Adapters) -> None:
    async def story(scene: Scene) -> None:
        async with scene.caller.post(f"{scene.url}/v1/audio", data={"model": "tickets"}) as found:
            assert (await found.json())["body"] == "model=tickets"

    run(story, adapters=adapters)


@pytest.mark.parametrize(
    "path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/load%5Flora%5Fadapter", "/x//load_lora_adapter"]
)
def test_the_engines_own_api_for_adapters_is_out_of_reach(adapters: Adapters, path: str) -> None:
    async def story(scene: Scene) -> None:
        async with scene.caller.post(URL(scene.url + path, encoded=True), json={"lora_name": "x"}) as found:
            assert (found.status, "X-Engine" in found.headers) == (404, False)

    run(story, adapters=adapters)


def test_models_are_listed_by_the_names_that_callers_know(adapters: Adapters) -> None:
    (adapters.folder / "names.json").write_text(json.dumps({"tickets": "tickets@12345678"}))
    made = vllm_contract.Engine(loaded={"tickets@12345678": "/a", "tickets@abcdef01": "/b"})

    async def story(scene: Scene) -> None:
        async with scene.caller.get(f"{scene.url}/v1/models") as found:
            told = await found.json()
        assert [card["id"] for card in told["data"]] == ["base", "tickets", "tickets@abcdef01"]

    with vllm_contract.serving(made) as url:
        run(story, url, adapters)


def test_a_pod_is_not_ready_before_its_adapters_are(adapters: Adapters) -> None:
    state = adapters.folder / "state.json"

    async def story(scene: Scene) -> None:
        async with scene.caller.get(f"{scene.url}/health") as found:
            assert found.status == 418, "the engine's own answer"
        state.unlink()
        state.write_text(PodAdapters(version="2").model_dump_json(by_alias=True))
        async with scene.caller.get(f"{scene.url}/health") as found:
            assert found.status == 503
        async with scene.caller.get(f"{scene.url}{PATH}") as found:
            assert PodAdapters.model_validate(await found.json()).version == "2"

    run(story, adapters=adapters)


def test_a_keeper_that_has_told_nothing_yet_keeps_the_pod_from_being_ready(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        async with scene.caller.get(f"{scene.url}/health") as found:
            assert found.status == 503
        async with scene.caller.post(f"{scene.url}/v1/completions", json={"model": "tickets"}) as found:
            assert found.status == 418

    run(story, adapters=Adapters(tmp_path))


def test_without_adapters_nothing_of_this_is_done() -> None:
    async def story(scene: Scene) -> None:
        async with scene.caller.post(f"{scene.url}/v1/load_lora_adapter", json={}) as found:
            assert found.status == 418

    run(story)
