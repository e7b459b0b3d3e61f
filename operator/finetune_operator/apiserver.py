"""One request to the API server: its answer decoded within our bounds, or an error by what follows from it.

What the operator asks stands in cluster.py, what a person at a command line asks in cli/reach.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

import aiohttp

from finetune_operator import metrics
from finetune_operator.decoding import decode_objects, lines
from finetune_operator.errors import ClusterError, NotFound, Unavailable, of_answer
from finetune_operator.meta import Object
from finetune_operator.settings import has_service_account

if TYPE_CHECKING:
    from kubernetes.aio.client.api_client import ApiClient

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Request:
    """One request to the API server; `timeout` in seconds."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Object | None = None
    content_type: str = "application/json"
    accept: str = "application/json, */*"
    timeout: float = TIMEOUT_SECONDS


class ApiServer:
    """The server with its credentials. Methods raise the errors of errors.py."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    @classmethod
    async def connect(cls, context: str | None = None) -> ApiServer:
        """Find credentials: $KUBECONFIG, else the pod's service account, else ~/.kube/config; `context` is a kubeconfig's."""
        from kubernetes.aio import config
        from kubernetes.aio.client.api_client import ApiClient
        from kubernetes.aio.client.configuration import Configuration

        configuration = Configuration()
        if context is None and has_service_account():
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(context=context, client_configuration=configuration)
        # aiohttp asks a thread for the environment's proxy, request by request, unless it is told that there is none.
        configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
        return cls(ApiClient(configuration))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def json(self, request: Request) -> Object:
        """The answer to a request, decoded."""
        found: Object = decode_objects(await self.text(request))
        return found

    async def text(self, request: Request) -> str:
        """The answer to a request."""
        call = await self._serialized(request)
        try:
            response = await self._client.call_api(*call, _request_timeout=request.timeout)
            content: bytes = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            metrics.API_REQUESTS.labels(request.method, metrics.NO_ANSWER).inc()
            raise Unavailable(f"{request.method} {request.path}: {error or type(error).__name__}") from error
        metrics.API_REQUESTS.labels(request.method, str(response.status)).inc()
        text = content.decode(errors="replace")
        if response.status >= 300:
            raise _error(response.status, text, response.getheader("Retry-After"))
        return text

    async def resources(self, api_version: str) -> frozenset[str]:
        """Plural names of what is served of a group's version; none where it is not there."""
        try:
            found = await self.json(Request("GET", f"/apis/{api_version}"))
        except NotFound:
            return frozenset()
        return frozenset(resource["name"] for resource in found.get("resources") or [])

    async def lines(self, request: Request) -> AsyncIterator[bytes]:
        """The lines of an answer as they come, until the server ends it. Silence for request.timeout is Unavailable."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_SECONDS, sock_read=request.timeout)
        call = await self._serialized(request)
        try:
            async with (await self._client.call_api(*call, _request_timeout=timeout)).response as response:
                if response.status >= 300:
                    raise _error(response.status, await response.text(), response.headers.get("Retry-After"))
                async for line in lines(response.content):
                    yield line
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{request.method} {request.path}: {error or type(error).__name__}") from error

    async def _serialized(self, request: Request) -> Any:
        """What the client's call_api takes. A body of ours is JSON as it is: the client would walk it value by value."""
        method, url, headers, _, _ = await self._client.param_serialize(
            request.method,
            request.path,
            query_params=list(request.query.items()),
            header_params={"Accept": request.accept, "Content-Type": request.content_type},
            auth_settings=["BearerToken"],
        )
        return method, url, headers, request.body


def _error(code: int, text: str, retry_after: str | None) -> ClusterError:
    """The error for an answer that is none of ours to read further: the server's own sentence, typed."""
    try:
        answer = decode_objects(text)
        message, reason = str(answer["message"]), answer.get("reason")
    except (ValueError, KeyError, TypeError):
        message, reason = text[:300] or f"HTTP {code}", None
    return of_answer(code, reason, message, float(retry_after) if retry_after and retry_after.isdigit() else None)
