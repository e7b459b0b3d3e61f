"""A front before `transformers serve`: whatever that would pass over in silence, or do wrongly, is done here or refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from finetune_operator.modelserve.engines import transformers
from finetune_trainer.contract.manners import Manners
from finetune_trainer.serving import front, watch
from finetune_trainer.serving.fitted import Facts, facts
from finetune_trainer.serving.lacking import Lacking

MANNERS = Manners(model="facts", lacks=transformers.LACKS)
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SAID = [{"role": "user", "content": "Hello!"}]
UNKNOWN = Facts()
SOON = 20.0
EVENT = 'data: {"choices":[{"delta":{"content":"fo"},"index":0}],"model":"facts@main"}\n\n'


@dataclass
class Engine:
    """Answers as transformers serve does (5.19); a prompt has a token for each of its letters."""

    events: list[str] = field(default_factory=lambda: [EVENT] * 3)
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        if body.get("seed") == 500:
            return web.Response(status=500, text="Internal Server Error")
        if body.get("seed") == 422:
            return web.json_response({"detail": "Unexpected fields in the request: {'x'}"}, status=422)
        if body.get("stream"):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            await response.prepare(request)
            for event in self.events:
                await response.write(event.encode())
            return response
        letters = len(body.get("prompt") or body["messages"][0]["content"])
        return web.json_response({"model": "facts@main", "usage": {"prompt_tokens": letters}})


@dataclass
class Scene:
    engine: Engine
    url: str
    caller: aiohttp.ClientSession

    async def post(self, body: dict[str, Any], path: str = CHAT, **headers: str) -> tuple[int, Any]:
        async with self.caller.post(self.url + path, json=body, headers=headers) as found:
            return found.status, await found.json()

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self.caller.get(self.url + path, headers=headers) as found:
            return found.status, await found.text()


@asynccontextmanager
async def fronted(engine: Engine, besides: Lacking) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/{path:.*}", engine.answer)
    application.router.add_get("/health", engine.health)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    behind = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with front.standing(0, behind, "127.0.0.1", besides) as (_, stands):
        yield f"http://127.0.0.1:{stands.addresses[0][1]}"
    await runner.cleanup()


def told(story: Callable[[Scene], Awaitable[None]], model: Facts = UNKNOWN, api_key: str | None = None, **engine: Any) -> None:
    async def run() -> None:
        made = Engine(**engine)
        besides = Lacking(MANNERS, transformers.LACKS, model, api_key)
        async with fronted(made, besides) as url, aiohttp.ClientSession() as caller:
            await story(Scene(made, url, caller))

    asyncio.run(asyncio.wait_for(run(), SOON))


def test_the_model_is_listed_by_its_name_and_no_other_path_leads_on() -> None:
    async def story(scene: Scene) -> None:
        status, text = await scene.get("/v1/models")
        assert (status, [card["id"] for card in json.loads(text)["data"]]) == (200, ["facts"])
        assert (await scene.get("/health"))[0] == 200
        for path in ("/load_model", "/reset", "/v1/responses", "/v1/embeddings"):
            assert (await scene.post({"model": "facts"}, path))[0] == 404
        assert (await scene.get("/openapi.json"))[0] == 404
        assert scene.engine.asked == []

    told(story)


def test_the_front_asks_for_the_key() -> None:
    async def story(scene: Scene) -> None:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}, {"Authorization": "Bearer ä"}):
            assert (await scene.post({"model": "facts", "messages": SAID}, **headers))[0] == 401
            assert (await scene.get("/v1/models", **headers))[0] == 401
        assert scene.engine.asked == []
        assert (await scene.post({"model": "facts", "messages": SAID}, Authorization="Bearer s3cret"))[0] == 200
        assert (await scene.get("/health"))[0] == (await scene.get("/metrics"))[0] == 200, "probes and Prometheus have none"

    told(story, api_key="s3cret")


def test_what_is_known_by_another_name_arrives_and_what_asks_for_nothing_is_left_out() -> None:
    async def story(scene: Scene) -> None:
        asked = {"messages": SAID, "max_completion_tokens": 7, "n": 1, "user": None, "stream_options": {"include_usage": True}}
        assert (await scene.post(asked))[0] == 200
        assert scene.engine.asked == [{"model": "facts", "messages": SAID, "max_tokens": 7}]

    told(story)


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("messages", {"messages": "Hello!"}),
        ("messages", {"messages": []}),
        ("messages", {}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}),
        ("tools", {"messages": SAID, "tools": [{"type": "function"}]}),
        ("n", {"messages": SAID, "n": 2}),
        ("response_format", {"messages": SAID, "response_format": {"type": "json_object"}}),
        ("logprobs", {"messages": SAID, "logprobs": True}),
        ("max_tokens", {"messages": SAID, "max_tokens": "7"}),
        ("max_tokens", {"messages": SAID, "max_tokens": 0}),
        ("max_completion_tokens", {"messages": SAID, "max_completion_tokens": True}),
    ],
)
def test_what_the_engine_would_pass_over_is_refused(field: str, body: dict[str, Any]) -> None:
    async def story(scene: Scene) -> None:
        status, found = await scene.post({"model": "facts", **body})
        assert (status, found["error"]["param"], scene.engine.asked) == (400, field, [])

    told(story)


def test_a_model_that_can_is_given_pictures_and_tools() -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]

    async def story(scene: Scene) -> None:
        assert (await scene.post({"messages": picture, "tools": [{"type": "function"}]}))[0] == 200

    told(story, Facts(has_pictures=True, has_tools=True))


@pytest.mark.parametrize(
    ("letters", "tokens", "status", "given"),
    [
        (10, 90, 200, 90),  # surely room for it: the engine is not asked beforehand
        (3000, 1000, 200, 1000),  # perhaps not: it is asked, and there is
        (3000, 1097, 400, None),
        (3000, None, 200, 1024),
        (4000, None, 200, 96),  # what is left
        (4096, None, 400, None),
        (9000, 5, 400, None),
    ],
)
def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused(
    letters: int, tokens: int | None, status: int, given: int | None
) -> None:
    async def story(scene: Scene) -> None:
        body = {"model": "facts", "prompt": "x" * letters} | ({} if tokens is None else {"max_tokens": tokens})
        found = await scene.post(body, COMPLETIONS)
        assert found[0] == status, found
        answered = [asked["max_tokens"] for asked in scene.engine.asked if asked["max_tokens"] != 1]
        assert answered == ([] if given is None else [given])
        assert len(scene.engine.asked) == len(answered) + (letters > 10)
        if status == 400:
            assert f"context is 4096 tokens, the prompt has {letters}" in found[1]["error"]["message"]

    told(story, Facts(context=4096))


@pytest.mark.parametrize(
    ("events", "end"), [([EVENT], True), ([EVENT, "data: [DONE]\n\n"], False), (['data: {"error": "x"}\n\n'], False)]
)
def test_a_whole_stream_has_the_end_that_clients_wait_for(events: list[str], end: bool) -> None:
    async def story(scene: Scene) -> None:
        async with scene.caller.post(scene.url + CHAT, json={"messages": SAID, "stream": True}) as found:
            assert await found.text() == "".join(events) + ("data: [DONE]\n\n" if end else "")

    told(story, events=events)


@pytest.mark.parametrize("status", [422, 500])
def test_errors_are_in_the_words_that_clients_read(status: int) -> None:
    async def story(scene: Scene) -> None:
        found, body = await scene.post({"messages": SAID, "seed": status})
        assert (found, body["error"]["code"]) == (status, status)
        assert ("Unexpected fields" in body["error"]["message"]) == (status == 422)

    told(story)


def test_requests_errors_and_tokens_are_counted_as_the_watch_reads_them() -> None:
    async def story(scene: Scene) -> None:
        await scene.post({"messages": SAID})
        await scene.post({"messages": SAID, "seed": 500})
        await scene.post({"messages": SAID, "model": "another"})
        async with scene.caller.post(scene.url + CHAT, json={"messages": SAID, "stream": True}) as found:
            await found.read()
        await scene.get("/v1/models")
        text = (await scene.get("/metrics"))[1]
        counted = watch.counted(text, transformers.ENGINE.counters)
        assert (counted.requests, counted.errors) == (4, 1)
        assert "transformers:num_requests_waiting 0" in text

    told(story)


def test_what_a_model_can_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 2048}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"template": "{{ tools }}"}]}))
    assert facts(tmp_path, None) == Facts(2048, has_pictures=False, has_tools=True)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "processor_config.json").write_text("{}")
    assert facts(tmp_path, 512) == Facts(512, has_pictures=True, has_tools=False)
    assert facts(tmp_path, 9999).context == 2048, "no promise makes it longer"
