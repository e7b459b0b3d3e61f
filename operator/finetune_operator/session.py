"""How Kopf reads the API server: with its own credentials and requests, but every answer decoded within our bounds.

Kopf parses each answer whole, in a task whose end is the operator's end. A custom session is its documented way in:
this one's answers come decoded by decoding.py, and a watch's lines are written anew from what was decoded.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import kopf

from finetune_operator.decoding import decode_objects, lines
from finetune_operator.settings import has_service_account


async def login(**kwargs: Any) -> kopf.AiohttpSession | None:
    """Credentials in the order in which cluster.Cluster looks for them; called again when they were refused.

    A coroutine, as Kopf calls plain functions in a thread, where no session can be made.
    """
    found = (kopf.login_with_service_account if has_service_account() else kopf.login_with_kubeconfig)(**kwargs)
    if found is None:
        return None
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=found.as_ssl_context()),
        headers=found.as_http_headers(),
        proxy=found.proxy_url,
        trust_env=found.trust_env,
        response_class=BoundedResponse,
    )
    return kopf.AiohttpSession(
        server=found.server,
        default_namespace=found.default_namespace,
        priority=found.priority,
        expiration=found.expiration,
        aiohttp_session=session,
    )


class BoundedResponse(aiohttp.ClientResponse):
    """An answer whose JSON is read by decode_objects, whether it comes whole or as the lines of a watch."""

    async def start(self, connection: Any) -> BoundedResponse:
        await super().start(connection)
        if self.status == 200 and "watch" in self.url.query:
            self.content = BoundedLines(self.content)  # type: ignore[assignment]
        return self

    async def json(self, **kwargs: Any) -> Any:
        return await super().json(**{**kwargs, "loads": decode_objects})


class BoundedLines:
    """A watch's body as Kopf reads it, in chunks; each chunk is one whole line."""

    def __init__(self, body: aiohttp.StreamReader) -> None:
        self._body = body

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for line in lines(self._body, size):
            yield json.dumps(decode_objects(line)).encode() + b"\n"
