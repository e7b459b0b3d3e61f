"""Kopf's session: every answer comes bounded, whole or as a watch's lines, however they are cut into chunks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from kopf._core.actions.invocation import invoke
from tests.unit.test_handlers import Woken

from finetune_operator.decoding import UNREADABLE, lines
from finetune_operator.handlers import kopf_settings, registry
from finetune_operator.session import BoundedResponse

DEEP = '{"metadata": {"name": "deep"}, "spec": ' + '{"a":' * 1500 + "1" + "}" * 1500 + "}"
GOOD = '{"metadata": {"name": "good"}}'
EVENTS = f'{{"type": "ADDED", "object": {DEEP}}}\n{{"type": "ADDED", "object": {GOOD}}}\n{{"type": "ADD'


async def answer(request: web.Request) -> web.Response:
    watch = "watch" in request.query
    text = EVENTS if watch else f'{{"kind": "List", "items": [{DEEP}, {GOOD}]}}'
    return web.Response(text=text, content_type="application/json", status=int(request.query.get("code", 200)))


@pytest.fixture
async def url() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


async def test_kopf_logs_in_with_such_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "team"}}
    cluster, user = {"name": "c", "cluster": {"server": "http://server"}}, {"name": "u", "user": {"token": "secret"}}
    config = {"current-context": "c", "contexts": [context], "clusters": [cluster], "users": [user]}
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    (handler,) = registry(Woken().events)._activities.get_all_handlers()
    found = await invoke(handler.fn, settings=kopf_settings(), kwargsrc=None, kwargs={"settings": kopf_settings()})
    async with found.aiohttp_session as session:
        assert (found.server, found.default_namespace) == ("http://server", "team")
        assert session.headers["Authorization"] == "Bearer secret"
        assert session._response_class is BoundedResponse


async def test_a_list_is_bounded(url: str) -> None:
    async with aiohttp.ClientSession(response_class=BoundedResponse) as session, session.get(url) as response:
        deep, good = (await response.json())["items"]
    assert UNREADABLE in deep
    assert good == json.loads(GOOD)


async def test_a_watch_is_bounded_line_by_line_and_a_line_cut_off_is_no_event(url: str) -> None:
    async with aiohttp.ClientSession(response_class=BoundedResponse) as session, session.get(f"{url}?watch=true") as response:
        found = [json.loads(chunk) async for chunk in response.content.iter_chunked(7)]
    assert [e["object"]["metadata"]["name"] for e in found] == ["deep", "good"]
    assert UNREADABLE in found[0]["object"]


async def test_an_error_on_a_watch_is_read_as_any_answer(url: str) -> None:
    async with (
        aiohttp.ClientSession(response_class=BoundedResponse) as session,
        session.get(f"{url}?watch=true&code=500") as response,
    ):
        assert len(await response.text()) == len(EVENTS)


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_lines_are_whole_however_long(size: int) -> None:
    class Body:
        async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
            text = b"\none\n\ntwo and more\nthree"
            for start in range(0, len(text), size):
                yield text[start : start + size]

    assert [line async for line in lines(Body(), size)] == [b"one", b"two and more"]
