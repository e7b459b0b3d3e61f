"""A request to an engine in the same pod, by as little code as it takes.

Once an engine has computed an answer, nothing that a front runs is in a processor's caches: each function costs several times
what it does in a loop. aiohttp's client has pools, redirects, cookies, proxies and traces on the way of each request; of it,
this is the protocol and the parser. Each request has a connection of its own, as llama.cpp closes kept ones after streams
without a word.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import aiohttp
from aiohttp import hdrs
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy

CONNECT_SECONDS = 5.0
# Of one connection, and none of the next one's (RFC 9110, 7.6.1); a body that is awaited has been asked for by then.
OF_A_CONNECTION = frozenset(
    {"connection", "expect", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)
BUFFER = 1 << 16  # bytes of an answer that are read before whoever asked has taken those before; what goes out as one piece


class Found(Protocol):
    """An engine's answer, whoever asked for it."""

    @property
    def status(self) -> int: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def headers(self) -> CIMultiDictProxy[str]: ...
    @property
    def content_type(self) -> str: ...
    @property
    def content(self) -> aiohttp.StreamReader: ...
    async def read(self) -> bytes: ...


@dataclass(frozen=True)
class Answer:
    """An engine's answer."""

    status: int
    reason: str | None
    headers: CIMultiDictProxy[str]
    content: aiohttp.StreamReader

    @property
    def content_type(self) -> str:
        return self.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        return await self.content.read()


@dataclass(frozen=True)
class Near:
    """An engine that is asked at a host and port."""

    host: str
    port: int

    @asynccontextmanager
    async def asked(self, method: str, path: str, headers: CIMultiDict[str], body: bytes | None) -> AsyncIterator[Answer]:
        """Its answer; at the end of the block the connection is closed, whether that was whole or not. `path` is as it goes
        out; `headers` are without those of a connection, and where there is a body, without its length.

        Raises ClientConnectorError and ConnectionTimeoutError where nobody takes the request, and others of aiohttp's
        ClientErrors where there is no answer to it, or a part of one.
        """
        connection = await self._connected()
        try:
            assert connection.transport is not None
            connection.set_response_params(
                skip_payload=method == hdrs.METH_HEAD, read_until_eof=True, auto_decompress=False, read_bufsize=BUFFER
            )
            head, body = self._head(method, path, headers, body), body or b""
            for part in (head + body,) if len(body) <= BUFFER else (head, body):
                connection.transport.write(part)
            yield await _answer(connection)
        finally:
            connection.close()

    async def _connected(self) -> ResponseHandler:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(partial(ResponseHandler, loop), self.host, self.port)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"no connection to port {self.port} within {CONNECT_SECONDS:g} s") from error
        except OSError as error:
            place = ConnectionKey(self.host, self.port, False, True, None, None, None)
            raise aiohttp.ClientConnectorError(place, error) from error
        return connection

    def _head(self, method: str, path: str, headers: CIMultiDict[str], body: bytes | None) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"{hdrs.HOST}: {self.host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [] if body is None else [f"{hdrs.CONTENT_LENGTH}: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


async def _answer(connection: ResponseHandler) -> Answer:
    while True:
        try:
            message, content = await connection.read()
        except HttpProcessingError as error:
            raise aiohttp.ClientPayloadError(f"no answer that can be read: {error.message}") from error
        if not 100 <= message.code < 200:  # it goes on after these
            return Answer(message.code, message.reason, message.headers, content)


def others(headers: CIMultiDictProxy[str], but: Collection[str] = ()) -> CIMultiDict[str]:
    """The headers that are not of a connection alone; `but` are left out as well."""
    left_out = OF_A_CONNECTION | {name.strip().lower() for name in headers.get(hdrs.CONNECTION, "").split(",")}
    left_out |= {name.lower() for name in but}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in left_out)
