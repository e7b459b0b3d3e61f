"""What a front does besides passing on: nothing, where the engine needs nothing of it. Others say what they do instead."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web

from finetune_trainer.serving.near import Found

SHOWN = 200  # characters of what was asked for
INVALID, NOT_FOUND = "invalid_request_error", "NotFoundError"  # types of errors
ERROR_EVENT = b'data: {"error"'  # of a stream that is not whole, though it came to its end
Ask = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]  # a question of the front's own to the engine: path, body


class Besides:
    async def own_answer(self, request: web.Request, ask: Ask) -> web.Response | None:
        """The answer to what the engine is not asked."""
        return None

    def leads_to(self, request: web.Request) -> str:
        """The engine's path for a request, with its query."""
        return request.rel_url.raw_path_qs

    async def renamed(self, request: web.Request) -> bytes | None:
        """The body for the engine; None where the request's is passed on as it comes."""
        return None

    def holds(self, path: str, status: int) -> bool:
        """Whether an answer is to be read as a whole, and told by `told`."""
        return False

    def told(self, status: int, body: bytes) -> tuple[int, bytes]:
        """Status and body that the caller gets in place of these."""
        return status, body

    async def pieces(self, found: Found) -> AsyncIterator[bytes]:
        """An answer as it comes in."""
        async for piece in found.content.iter_any():
            yield piece

    def begun(self, request: web.Request) -> None:
        """Something was asked."""

    def ended(self, request: web.Request, status: int | None) -> None:
        """It was answered, or its caller has gone."""


def error(status: int, message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": int(status)}}


def refusal(status: HTTPStatus, message: str, kind: str, param: str | None = None) -> web.Response:
    """An answer that is such an error."""
    return web.json_response(error(status, message, kind, param), status=status)


def brings(request: web.Request, key: str) -> bool:
    """Whether a request brings the API key."""
    return hmac.compare_digest(request.headers.get(hdrs.AUTHORIZATION, "").encode(), f"Bearer {key}".encode())


def keyless() -> web.Response:
    """The answer to a request that does not."""
    return refusal(HTTPStatus.UNAUTHORIZED, "bring the API key: Authorization: Bearer", "authentication_error")


def not_served(request: web.Request) -> web.Response:
    """The answer where a path leads to nothing."""
    return refusal(HTTPStatus.NOT_FOUND, f"{request.path[:SHOWN]} is not served here", NOT_FOUND)
