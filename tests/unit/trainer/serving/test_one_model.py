"""A front before llama.cpp, which answers to any name: the model's alone is answered, and what can't be had is a clear 4xx."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from finetune_operator.modelserve.engines import llamacpp
from finetune_trainer.contract.manners import Manners
from finetune_trainer.serving import front
from finetune_trainer.serving.one_model import OneModel

MANNERS = llamacpp.MANNERS.model_copy(update={"model": "facts"})
SOON = 20.0
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
# As llama-server answers.
NO_IMAGES = (
    500,
    "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
    "server_error",
)
NO_EMBEDDINGS = (501, "This server does not support embeddings. Start it with `--embeddings`", "not_supported_error")
TOO_LONG = (
    400,
    "request (900 tokens) exceeds the available context size (512 tokens), try increasing it",
    "exceed_context_size_error",
)
FULL = (500, "Context size has been exceeded.", "server_error")
ITS_OWN = (500, "failed to allocate", "server_error")


class Engine:
    """Answers to any name, or with one error, and remembers what it was asked."""

    def __init__(self, error: tuple[int, str, str] | None = None) -> None:
        self.error, self.asked = error, list[tuple[str, str]]()

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, await request.text()))
        if self.error is None:
            return web.json_response({"model": "facts", "object": "chat.completion"})
        status, message, kind = self.error
        return web.json_response({"error": {"code": status, "message": message, "type": kind}}, status=status)


@asynccontextmanager
async def fronted(engine: Engine, manners: Manners) -> AsyncIterator[str]:
    """The URL of a front with these manners before it."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", engine.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    behind = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with front.standing(0, behind, "127.0.0.1", OneModel(manners)) as (_, stands):
        yield f"http://127.0.0.1:{stands.addresses[0][1]}"
    await runner.cleanup()


def told(story: Callable[[str, aiohttp.ClientSession], Awaitable[None]], engine: Engine, manners: Manners = MANNERS) -> None:
    async def run() -> None:
        async with fronted(engine, manners) as url, aiohttp.ClientSession() as caller:
            await story(url, caller)

    asyncio.run(asyncio.wait_for(run(), SOON))


def answer(engine: Engine, path: str, body: object, **options: Any) -> tuple[int, Any]:
    """Status and JSON of the answer to one POST."""
    found: list[tuple[int, Any]] = []

    async def story(url: str, caller: aiohttp.ClientSession) -> None:
        data = body if isinstance(body, str) else json.dumps(body)
        async with caller.post(url + path, data=data, **options) as response:
            found.append((response.status, await response.json(content_type=None)))

    told(story, engine)
    return found[0]


@pytest.mark.parametrize("name", ["facts", None])
def test_the_models_own_name_and_none_lead_to_the_engine(name: str | None) -> None:
    engine, body = Engine(), {"model": name, "messages": ["ä"]}
    assert answer(engine, CHAT, body)[0] == 200
    assert engine.asked == [(CHAT, json.dumps(body))], "as it was sent"


@pytest.mark.parametrize("name", ["gpt-5", "FACTS", "", ["facts"], 7])
@pytest.mark.parametrize("headers", [{"Content-Type": "application/json"}, {"Content-Type": "text/plain"}])
def test_another_models_name_is_not_found_and_never_answered(name: object, headers: dict[str, str]) -> None:
    engine = Engine()
    status, found = answer(engine, CHAT, {"model": name, "messages": []}, headers=headers)
    assert (status, found["error"]["code"], found["error"]["param"], engine.asked) == (404, 404, "model", [])
    assert "ask for `facts`" in found["error"]["message"]


@pytest.mark.parametrize("body", ["no json", "[1]", "{}", "[" * 100000])
def test_what_names_no_model_is_left_to_the_engine(body: str) -> None:
    engine = Engine(TOO_LONG)
    assert answer(engine, CHAT, body)[0] == 400
    assert engine.asked == [(CHAT, body)]


@pytest.mark.parametrize("error", [NO_IMAGES, NO_EMBEDDINGS, FULL])
def test_what_the_model_can_not_do_is_the_askers_fault(error: tuple[int, str, str]) -> None:
    status, found = answer(Engine(error), EMBEDDINGS, {"model": "facts", "input": "a"})
    assert (status, found["error"]["code"]) == (400, 400)
    assert found["error"]["message"] == error[1], "the engine's own words"


@pytest.mark.parametrize("error", [TOO_LONG, ITS_OWN])
def test_other_errors_are_the_engines(error: tuple[int, str, str]) -> None:
    status, found = answer(Engine(error), CHAT, {"model": "facts"})
    assert (status, found["error"]) == (error[0], {"code": error[0], "message": error[1], "type": error[2]})


@pytest.mark.parametrize("path", ["/slots", "/slots/0?action=save", "/props", "/lora-adapters", "/%73lots"])
def test_what_tells_of_other_callers_is_out_of_reach(path: str) -> None:
    engine = Engine()

    async def story(url: str, caller: aiohttp.ClientSession) -> None:
        for ask in (caller.get, caller.post):
            async with ask(url + path) as found:
                assert found.status == 404

    told(story, engine)
    assert engine.asked == []


def test_other_paths_are_the_engines() -> None:
    engine = Engine()

    async def story(url: str, caller: aiohttp.ClientSession) -> None:
        for path in ("/health", "/metrics", "/v1/models"):
            async with caller.get(url + path) as found:
                assert found.status == 200

    told(story, engine)
    assert [path for path, _ in engine.asked] == ["/health", "/metrics", "/v1/models"]
