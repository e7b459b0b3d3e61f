"""A proxy in front of the API server that knows what a client did, and can kill the client between two of its writes.

operator ── http ──► proxy ── https ──► kube-apiserver
                       └─ counts; after write k was committed: on_kill(), and the answer never arrives
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

WRITES = ("POST", "PUT", "PATCH", "DELETE")
UNCOUNTED = ("leases", "events")  # an election goes on for ever, and an event is a courtesy
HOP_BY_HOP = {"host", "connection", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Request:
    """One request that was answered."""

    method: str
    path: str
    query: str
    code: int
    at: float = field(default_factory=time.monotonic)  # when it was answered

    @property
    def is_write(self) -> bool:
        return self.method in WRITES and not any(word in self.path.split("/") for word in UNCOUNTED)


class FaultProxy:
    """Runs in a thread of its own until `stop`; `url` is where the client is sent to."""

    def __init__(self, server: str, authority: str) -> None:
        self._server = server
        self._authority = authority
        self.requests: list[Request] = []
        self.written = threading.Event()  # set at each write; whoever waits for silence clears it
        self.kill_after: int | None = None  # the write, counted from 1, whose answer never arrives
        self.on_kill: Callable[[], None] = lambda: None
        self.headers: dict[str, str] = {}  # of each request to the server, besides the client's: Go sends no token over HTTP
        self.logs: dict[str, str] = {}  # by pod: what it printed, as no kubelet is there to ask
        self.url = ""
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(10), "the proxy did not start"

    def writes(self) -> list[Request]:
        """The writes that the API server accepted, in order."""
        return [r for r in self.requests if r.is_write and r.code < 300]

    def stop(self) -> None:
        """Close all connections and end the thread."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        context = ssl.create_default_context(cadata=self._authority)
        # No limit on connections: each watch holds one.
        connector = aiohttp.TCPConnector(ssl=context, limit=0, enable_cleanup_closed=True)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            self._session = session
            app = web.Application(client_max_size=64 * 2**20)
            app.router.add_route("*", "/{tail:.*}", self._forward)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._started.set()
            await self._stop.wait()
            for watch in asyncio.all_tasks() - {asyncio.current_task()}:
                watch.cancel()  # they would go on for minutes
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        if (pod := request.path.removesuffix("/log").rpartition("/")[2]) in self.logs and request.path.endswith("/log"):
            self.requests.append(Request(request.method, request.path, request.query_string, 200))
            return web.Response(text=self.logs[pod])
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP} | self.headers
        url = self._server + request.raw_path
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.request(
            request.method, url, headers=headers, data=await request.read() or None, timeout=timeout
        ) as answer:
            path, query = urlsplit(request.raw_path).path, request.query_string
            known = Request(request.method, path, query, answer.status)
            self.requests.append(known)
            if known.is_write and answer.status < 300:
                self.written.set()
                if len(self.writes()) == self.kill_after:
                    self.on_kill()
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    response.headers[name] = value
            with contextlib.suppress(ConnectionError):  # a client that is gone, killed or not, needs no answer
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
            return response
