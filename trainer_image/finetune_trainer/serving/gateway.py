"""Takes the requests of a model that sleeps while nobody asks: holds them until a pod is there, and passes them on.

    python -m finetune_trainer.serving.gateway --port 8000 --to http://bot-live.chat.svc:8000 --model bot --hold 600 --most 100

    callers ──► gateway ──► the Service of the pods that serve        a request that reaches none is held, and goes on by itself

It stands before the pods also while they are there, so that nothing is lost as they go: a request that finds none is held like
those before it. Whoever can't be held is told when to ask again: 429 where too many wait, 503 where it takes too long. What a
caller only looks at (GET) wakes nobody. With an API key nobody wakes the model who doesn't bring it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp
from aiohttp import hdrs, web

from finetune_trainer.contract.gateway import PATH, GatewayState
from finetune_trainer.contract.manners import HEALTH
from finetune_trainer.environment import access
from finetune_trainer.serving.besides import brings, keyless
from finetune_trainer.serving.front import Front, answering, until_drained
from finetune_trainer.serving.kept import Whole
from finetune_trainer.serving.named import MODELS

LOOK_SECONDS = 0.5  # between two looks whether a pod is there
LOOK_TIMEOUT_SECONDS = 3.0
AGAIN_SECONDS = 10  # after which whoever can't be held may ask again
ABSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)  # nothing of the request was sent


@dataclass(frozen=True)
class Holding:
    """Whom a gateway holds."""

    model: str
    seconds: float  # that a request is held, at most
    most: int  # requests at once
    api_key: str | None = field(default=None, repr=False)


@dataclass
class Gateway(Front):
    """What is between callers and the pods that serve, if there are some."""

    holding: Holding = field(kw_only=True)
    held: int = 0
    asked: int = 0  # requests that are not answered yet
    quiet_since: float = field(default_factory=time.monotonic)
    _looking: asyncio.Task[None] | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The model's answer to one request, however long that one is held."""
        if request.path == HEALTH:  # the gateway's own: it takes requests
            return web.json_response({"status": "ok"})
        if request.path == PATH:
            return web.json_response(text=self.state.model_dump_json(by_alias=True))
        if request.method != hdrs.METH_POST:
            return await super().answer(request)
        self.asked += 1
        try:
            return await super().answer(request)
        finally:
            self.asked, self.quiet_since = self.asked - 1, time.monotonic()

    @property
    def state(self) -> GatewayState:
        idle = 0.0 if self.asked else time.monotonic() - self.quiet_since
        return GatewayState(held=self.held, running=self.asked, idle_seconds=round(idle, 1))

    async def _passed_on(self, request: web.Request, body: bytes | None, whole: Whole | None = None) -> web.StreamResponse:
        """The answer of a pod, once there is one."""
        end = time.monotonic() + self.holding.seconds
        while True:
            try:
                return await self._relayed(request, body, whole)
            except ABSENT:
                if (answer := await self._without_pods(request, end)) is not None:
                    return answer

    async def _without_pods(self, request: web.Request, end: float) -> web.Response | None:
        """What is answered while no pod is there; None once one is."""
        key = self.holding.api_key
        if key is not None and not brings(request, key):
            return keyless()
        if request.method != hdrs.METH_POST:
            return self._looked_at(request)
        if self.held >= self.holding.most:
            return _later(HTTPStatus.TOO_MANY_REQUESTS, f"{self.held} requests wait for the model to start already")
        self.held += 1
        try:
            await asyncio.wait_for(self._there(), max(0.0, end - time.monotonic()))
        except TimeoutError:
            return _later(HTTPStatus.SERVICE_UNAVAILABLE, f"the model has not started within {self.holding.seconds:g} s")
        finally:
            self.held -= 1
        return None

    def _looked_at(self, request: web.Request) -> web.Response:
        if request.path == MODELS and request.method == hdrs.METH_GET:
            return web.json_response({"object": "list", "data": [{"id": self.holding.model, "object": "model"}]})
        return _later(HTTPStatus.SERVICE_UNAVAILABLE, "the model sleeps; a POST wakes it")

    async def _there(self) -> None:
        """Wait until a pod answers: one look for all that wait."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        limit = aiohttp.ClientTimeout(total=LOOK_TIMEOUT_SECONDS)
        while self.held:
            try:
                async with self.session.get(self.engine + HEALTH, timeout=limit) as found:
                    if found.status == HTTPStatus.OK:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(LOOK_SECONDS)


def _later(status: HTTPStatus, text: str) -> web.Response:
    """An error as OpenAI's clients read it; they ask again by themselves."""
    body = {"error": {"message": text, "type": "unavailable_error", "code": int(status)}}
    return web.json_response(body, status=status, headers={hdrs.RETRY_AFTER: str(AGAIN_SECONDS)})


@asynccontextmanager
async def standing(
    port: int, to: str, holding: Holding, host: str | None = None
) -> AsyncIterator[tuple[Gateway, web.AppRunner]]:
    """A gateway that answers until the block ends, at all of this machine's addresses or at one."""
    async with answering(port, host, lambda session: Gateway(to.rstrip("/"), session, holding=holding)) as found:
        yield found


async def serve(port: int, to: str, holding: Holding, drain: float) -> None:
    """Answer until SIGTERM, and drain."""
    async with standing(port, to, holding) as (gateway, runner):
        await until_drained(gateway, runner, drain)


def main(arguments: list[str] | None = None) -> int:
    """Serve as the command line says, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.serving.gateway", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True, help="where requests come in")
    parser.add_argument("--to", required=True, help="URL of the Service of the pods that serve")
    parser.add_argument("--model", required=True, help="name of the model")
    parser.add_argument("--hold", type=float, required=True, help="seconds that a request is held, at most")
    parser.add_argument("--most", type=int, required=True, help="requests that are held at once, at most")
    parser.add_argument("--drain", type=float, required=True, help="seconds from SIGTERM until the end, at most")
    options = parser.parse_args(arguments)
    holding = Holding(options.model, options.hold, options.most, access().served_api_key)
    asyncio.run(serve(options.port, options.to, holding, options.drain))
    return 0


if __name__ == "__main__":
    sys.exit(main())
