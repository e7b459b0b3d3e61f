"""Takes the requests of an engine that would break off answers when it is stopped: passes them on, and drains the pod.

    python -m finetune_trainer.serving.front --port 8080 --engine http://127.0.0.1:8081 --drain 30

    caller ── a connection that is kept ──► front ── one connection a request ──► engine

Before an engine with adapters it leads their names to what the engine calls them (named.py); before one that would answer to
any name it answers to the model's alone (one_model.py), and does what else an engine lacks (lacking.py). What it has been asked
before it may answer by itself (kept.py).
From SIGTERM on, each answer that begins says `Connection: close`, so that whoever keeps a connection finds another pod with
the next request. The program ends when nothing is being answered and nobody has come for a while, at the latest after so
many seconds; the engine is stopped only then (modelserve/pod.py has it sleep before).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDictProxy
from yarl import URL

from finetune_trainer.contract.manners import Manners
from finetune_trainer.environment import access
from finetune_trainer.serving.besides import Besides
from finetune_trainer.serving.fitted import facts
from finetune_trainer.serving.kept import HEADER, Cache, Whole
from finetune_trainer.serving.lacking import Lacking
from finetune_trainer.serving.named import LARGEST_BODY, METRICS, Adapters
from finetune_trainer.serving.near import CONNECT_SECONDS, Found, Near, others
from finetune_trainer.serving.one_model import OneModel

QUIET_SECONDS = 5.0  # until every node knows that the pod takes no more requests
STEP_SECONDS = 0.1
END_SECONDS = 1.0  # for what is still answered when the time is over
LENGTH = (hdrs.CONTENT_LENGTH,)
AS_THEY_ARE = (hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT)  # a client would add its own


Stands = TypeVar("Stands", bound="Front")


@dataclass
class Front:
    """What is between callers and one engine."""

    engine: str
    session: aiohttp.ClientSession
    besides: Besides = field(default_factory=Besides)
    cache: Cache | None = None
    is_draining: bool = False
    running: int = 0
    came: float = 0.0  # when something was asked last, on the monotonic clock
    _near: Near = field(init=False)

    def __post_init__(self) -> None:
        url = URL(self.engine)
        self._near = Near(url.host or "", url.port or 80)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The engine's answer to one request, piece by piece as it comes in."""
        self.running += 1
        if request.method == hdrs.METH_POST:  # probes and scrapes go on while a pod ends
            self.came = time.monotonic()
        response: web.StreamResponse | None = None
        self.besides.begun(request)
        try:
            own = await self.besides.own_answer(request, self._asked)
            response = own if own is not None else await self._answered(request)
            if isinstance(response, web.Response):
                if self.cache is not None and self._adds_metrics(request):
                    assert isinstance(response.body, bytes)
                    response.body += self.cache.text().encode()
                self._closing(response)
            return response
        finally:
            self.running -= 1
            self.besides.ended(request, None if response is None else response.status)

    async def _asked(self, path: str, body: bytes) -> tuple[int, bytes]:
        headers = {hdrs.CONTENT_TYPE: "application/json"}
        async with self.session.post(self.engine + path, data=body, headers=headers) as found:
            return found.status, await found.read()

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        """The engine's answer, or the same that it gave before."""
        body = await self.besides.renamed(request)
        if self.cache is None or request.method != hdrs.METH_POST:
            return await self._passed_on(request, body)
        body = await request.read() if body is None else body
        if (key := self.cache.key(request, body)) is None:
            return await self._passed_on(request, body)
        if (kept := await self.cache.found(key)) is not None:
            return kept
        response = await self._passed_on(request, body, whole := Whole())
        await self.cache.keep(key, whole)
        return response

    async def _passed_on(self, request: web.Request, body: bytes | None, whole: Whole | None = None) -> web.StreamResponse:
        try:
            return await self._relayed(request, body, whole)
        except aiohttp.ClientConnectorError:
            return self._without_engine(503, "the engine does not answer; ask again in a moment")
        except aiohttp.ConnectionTimeoutError as error:
            return self._without_engine(502, f"the engine broke off: {type(error).__name__}")

    async def _relayed(self, request: web.Request, body: bytes | None, whole: Whole | None) -> web.StreamResponse:
        """The engine's answer. Raises ClientConnectorError, or ConnectionTimeoutError, where no engine took the request."""
        response: web.StreamResponse | None = None
        try:
            async with self._found(request, body) as found:
                if self._adds_metrics(request):
                    return web.Response(status=found.status, body=await found.read(), headers=others(found.headers, but=LENGTH))
                if self.besides.holds(request.path, found.status):
                    return self._told(*self.besides.told(found.status, await found.read()), found.headers)
                response = web.StreamResponse(status=found.status, reason=found.reason, headers=others(found.headers))
                if whole is not None:
                    response.headers[HEADER] = "miss"
                await self._begin(response, request)
                async for piece in self.besides.pieces(found):
                    await response.write(piece)
                    if whole is not None:
                        whole.came(piece)
                await response.write_eof()
                if whole is not None:
                    told = found.headers
                    whole.ended(found.status, told.get(hdrs.CONTENT_TYPE, ""), told.get(hdrs.CONTENT_ENCODING))
                return response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise
        except aiohttp.ClientError as error:
            if response is None:
                return self._without_engine(502, f"the engine broke off: {type(error).__name__}")
            # An end without the last piece is how the caller sees that the answer is not whole.
            if request.transport is not None:
                request.transport.close()
            return response

    def _found(self, request: web.Request, body: bytes | None) -> AbstractAsyncContextManager[Found]:
        path, headers = self.besides.leads_to(request), others(request.headers, but=self._not_passed(request, body))
        if body is not None or not request.body_exists:
            return self._near.asked(request.method, path, headers, body)
        url = URL(self.engine + path, encoded=True)
        return self.session.request(request.method, url, headers=headers, data=request.content, allow_redirects=False)

    def _adds_metrics(self, request: web.Request) -> bool:
        return self.cache is not None and request.path == METRICS

    def _not_passed(self, request: web.Request, body: bytes | None) -> Collection[str]:
        """Headers that are not the engine's matter: what more is written to cannot come compressed, and it may answer to its
        own address alone.
        """
        return [hdrs.HOST, *(() if body is None else LENGTH), *((hdrs.ACCEPT_ENCODING,) if self._adds_metrics(request) else ())]

    def _told(self, status: int, body: bytes, headers: CIMultiDictProxy[str]) -> web.Response:
        passed = others(headers, but=(hdrs.CONTENT_LENGTH, hdrs.CONTENT_TYPE))
        response = web.Response(status=status, body=body, headers=passed, content_type="application/json")
        self._closing(response)
        return response

    async def _begin(self, response: web.StreamResponse, request: web.Request) -> None:
        self._closing(response)
        await response.prepare(request)

    def _closing(self, response: web.StreamResponse) -> None:
        """While the pod ends, an answer says that its connection does."""
        if self.is_draining:
            response.force_close()

    def _without_engine(self, status: int, text: str) -> web.Response:
        """An error as OpenAI's clients read it; they ask again by themselves."""
        body = {"error": {"message": text, "type": "unavailable_error", "code": status}}
        response = web.json_response(body, status=status, headers={hdrs.RETRY_AFTER: "1"})
        self._closing(response)
        return response

    async def drained(self, seconds: float, quiet: float = QUIET_SECONDS) -> None:
        """Drain: it returns when nothing is answered any more and nobody comes, at the latest after so many seconds."""
        self.is_draining, begun = True, time.monotonic()
        while (now := time.monotonic()) < begun + seconds:
            if not self.running and now - max(begun, self.came) >= quiet:
                return
            await asyncio.sleep(STEP_SECONDS)


@asynccontextmanager
async def standing(
    port: int, engine: str, host: str | None = None, besides: Besides | None = None, cache: Cache | None = None
) -> AsyncIterator[tuple[Front, web.AppRunner]]:
    """A front that answers until the block ends, at all of this machine's addresses or at one."""
    try:
        async with answering(
            port, host, lambda session: Front(engine.rstrip("/"), session, besides or Besides(), cache)
        ) as found:
            yield found
    finally:
        if cache is not None:
            await cache.close()


@asynccontextmanager
async def answering(
    port: int, host: str | None, made: Callable[[aiohttp.ClientSession], Stands]
) -> AsyncIterator[tuple[Stands, web.AppRunner]]:
    """A server of what is made with a session for its engine, until the block ends."""
    async with aiohttp.ClientSession(
        # llama.cpp closes kept connections after streams without a word: each request has one of its own.
        connector=aiohttp.TCPConnector(force_close=True, limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=AS_THEY_ARE,
        auto_decompress=False,
    ) as session:
        front, application = made(session), web.Application(client_max_size=LARGEST_BODY)
        application.router.add_route("*", "/{path:.*}", front.answer)
        # Whoever is gone is to be answered no more, hence the cancellation.
        runner = web.AppRunner(
            application, handler_cancellation=True, auto_decompress=False, access_log=None, shutdown_timeout=END_SECONDS
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, backlog=1024).start()
            yield front, runner
        finally:
            await runner.cleanup()


async def serve(port: int, engine: str, drain: float, besides: Besides, cache: Cache | None) -> None:
    """Answer until SIGTERM, and drain."""
    async with standing(port, engine, besides=besides, cache=cache) as (front, runner):
        await until_drained(front, runner, drain)


async def until_drained(front: Front, runner: web.AppRunner, drain: float) -> None:
    """Answer until SIGTERM, and drain for so many seconds at most."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print(f"port {runner.addresses[0][1]} leads to {front.engine}", flush=True)
    await stopped.wait()
    print(f"draining for at most {drain:g} s; {front.running} requests are being answered", flush=True)
    await front.drained(drain)
    print(f"drained; {front.running} requests are left", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Serve as the command line says, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.serving.front", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True, help="where requests come in")
    parser.add_argument("--engine", required=True, help="URL of the engine")
    parser.add_argument("--drain", type=float, required=True, help="seconds from SIGTERM until the end, at most")
    parser.add_argument("--adapters", type=Path, help="folder in which the keeper of adapters tells of them")
    parser.add_argument("--manners", type=Manners.model_validate_json, help="where the engine does otherwise than OpenAI's API")
    parser.add_argument("--folder", type=Path, help="where the model lies, for an engine that does not count tokens")
    parser.add_argument("--context", type=int, help="tokens of prompt and answer together, at most")
    parser.add_argument("--cache-seconds", type=int, help="how long answers are kept in the Redis that the environment names")
    options = parser.parse_args(arguments)
    asyncio.run(serve(options.port, options.engine, options.drain, _besides(options), _cache(options.cache_seconds)))
    return 0


def _cache(seconds: int | None) -> Cache | None:
    """The cache that the command line asks for, and the environment names."""
    found = access()
    if seconds is None or found.cache_url is None:
        return None
    return Cache(found.cache_url, (found.revision or "", found.served_api_key or ""), seconds)


def _besides(options: argparse.Namespace) -> Besides:
    """What the command line asks for besides; no engine needs both."""
    if options.adapters is not None:
        return Adapters(options.adapters)
    if options.manners is None:
        return Besides()
    if options.manners.lacks is None:
        return OneModel(options.manners)
    return Lacking(options.manners, options.manners.lacks, facts(options.folder, options.context), access().served_api_key)


if __name__ == "__main__":
    sys.exit(main())
