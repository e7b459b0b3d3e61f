"""A front's requests to its engine: what goes over the connection, and what is made of engines that answer badly, or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from multidict import CIMultiDict

from finetune_trainer.serving import near
from finetune_trainer.serving.near import BUFFER, Near

SOON = 10.0  # seconds in which what is to happen has happened, on a busy machine
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEADERS = CIMultiDict({"Content-Type": "application/json", "X-Name": "\u00e4\udce4"})  # the last byte is no UTF-8


@asynccontextmanager
async def engine(talk: Talk) -> AsyncIterator[Near]:
    """An engine that talks to one caller as the test says, and closes the connection."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(once, "127.0.0.1", 0) as server, asyncio.timeout(2 * SOON):
        host, port = server.sockets[0].getsockname()
        yield Near(host, port)


def answers(text: bytes, heard: list[bytes] | None = None, length: int = 0) -> Talk:
    """Hear a request whose body has this length, and say this."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(length)
        if heard is not None:
            heard.append(found)
        writer.write(text)
        await writer.drain()

    return talk


@pytest.mark.parametrize("body", [None, b"{}", b"x" * (BUFFER + 1)])
async def test_a_request_goes_out_as_it_is(body: bytes | None) -> None:
    heard: list[bytes] = []
    text = b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 2\r\nContent-Type: Text/Plain; charset=x\r\n\r\nno"
    async with (
        engine(answers(text, heard, len(body or b""))) as asks,
        asks.asked("POST", "/v1/a%20b?c=d%2Fe", HEADERS, body) as found,
    ):
        assert (found.status, found.reason, found.content_type) == (418, "I'm a teapot", "text/plain")
        assert await found.read() == b"no"
    head, _, told = heard[0].partition(b"\r\n\r\n")
    length = [] if body is None else [f"Content-Length: {len(body)}"]
    assert head.decode("utf-8", "surrogateescape").split("\r\n") == [
        "POST /v1/a%20b?c=d%2Fe HTTP/1.1",
        f"Host: 127.0.0.1:{asks.port}",
        "Content-Type: application/json",
        f"X-Name: {HEADERS['X-Name']}",
        *length,
    ]
    assert told == (body or b"")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
async def test_an_answer_is_whole_however_it_says_its_length(text: bytes, expected: bytes) -> None:
    async with engine(answers(text)) as asks, asks.asked("POST", "/", HEADERS, None) as found:
        assert await found.read() == expected
        assert found.status != 102


async def test_the_head_of_an_answer_has_no_body_to_wait_for() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answers(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")(reader, writer)
        await reader.read()  # the connection stays until the caller has gone

    async with engine(talk) as asks, asks.asked("HEAD", "/", HEADERS, None) as found:
        assert (found.headers["Content-Length"], await found.read()) == ("5", b"")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", aiohttp.ServerDisconnectedError),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", aiohttp.ClientError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", aiohttp.ClientPayloadError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", aiohttp.ClientPayloadError),
    ],
)
async def test_half_an_answer_is_none(text: bytes, error: type[Exception]) -> None:
    async with engine(answers(text)) as asks:
        with pytest.raises(error):
            async with asks.asked("POST", "/", HEADERS, None) as found:
                await found.read()


async def test_where_nobody_listens_nothing_was_sent() -> None:
    async with engine(answers(b"")) as asks:
        pass
    with pytest.raises(aiohttp.ClientConnectorError):
        async with asks.asked("POST", "/", HEADERS, None):
            raise AssertionError


async def test_a_connection_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "CONNECT_SECONDS", 0.1)

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    with pytest.raises(aiohttp.ConnectionTimeoutError, match="no connection to port 1 within"):
        async with Near("127.0.0.1", 1).asked("POST", "/", HEADERS, None):
            raise AssertionError


async def test_no_more_of_an_answer_is_read_than_is_taken() -> None:
    """An engine that is faster than whoever is answered fills no memory."""
    pieces, held = 1024, asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answers(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (pieces * BUFFER))(reader, writer)
        for _ in range(pieces):
            writer.write(b"x" * BUFFER)
            try:
                await asyncio.wait_for(writer.drain(), 0.5)
            except TimeoutError:
                held.set()
                await writer.drain()

    async with engine(talk) as asks, asks.asked("POST", "/", HEADERS, None) as found:
        await asyncio.wait_for(held.wait(), SOON)
        assert sum([len(piece) async for piece in found.content.iter_any()]) == pieces * BUFFER


async def test_an_engine_is_told_when_its_answer_is_wanted_no_more() -> None:
    left = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answers(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab")(reader, writer)
        assert await reader.read() == b""
        left.set()

    async with engine(talk) as asks:
        async with asks.asked("POST", "/", HEADERS, None) as found:
            assert await found.content.readany() == b"ab"
        await asyncio.wait_for(left.wait(), SOON)
