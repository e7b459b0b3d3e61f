"""What the front of an engine that is careless about OpenAI's API does besides (contract/manners.py).

POST … {"model": "another"}  ──► 404: the engine would answer with the model that it has
…/slots, …                   ──► 404: what tells of other callers is nobody's
5xx, for what was asked      ──► 400: no client is to ask that again
501                          ──► 400: embeddings of a model that has none
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web

from finetune_trainer.contract.manners import Manners

SHOWN = 200  # characters of a name that was asked for
HELD = (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.NOT_IMPLEMENTED)


def refusal(status: HTTPStatus, message: str, kind: str, param: str | None = None) -> web.Response:
    """An error as OpenAI's clients read it."""
    error = {"message": message, "type": kind, "param": param, "code": int(status)}
    return web.json_response({"error": error}, status=status)


@dataclass(frozen=True)
class OneModel:
    """The only model that an engine has."""

    manners: Manners

    async def own_answer(self, request: web.Request) -> web.Response | None:
        """The answer to what the engine is not asked."""
        if request.path.startswith(self.manners.hidden):
            return refusal(HTTPStatus.NOT_FOUND, f"{request.path[:SHOWN]} is not served here", "NotFoundError")
        if request.method != hdrs.METH_POST:
            return None
        name = _read(await request.read()).get("model")
        if name is None or name == self.manners.model:
            return None
        message = f"the model `{str(name)[:SHOWN]}` does not exist here; ask for `{self.manners.model}`"
        return refusal(HTTPStatus.NOT_FOUND, message, "NotFoundError", "model")

    async def renamed(self, request: web.Request) -> bytes | None:
        """The body for the engine, as it was read before; it is the caller's own."""
        return await request.read() if request.method == hdrs.METH_POST else None

    def holds(self, path: str, status: int) -> bool:
        """Whether an answer is to be read as a whole, and told by `told`."""
        return status in HELD

    def told(self, status: int, body: bytes) -> tuple[int, bytes]:
        """What the caller is told in place of the engine's error."""
        error = _read(body).get("error")
        message = str(error.get("message", "")) if isinstance(error, dict) else ""
        if status != HTTPStatus.NOT_IMPLEMENTED and not any(words in message for words in self.manners.askers_faults):
            return status, body
        found = {"message": message, "type": "invalid_request_error", "param": None, "code": int(HTTPStatus.BAD_REQUEST)}
        return HTTPStatus.BAD_REQUEST, json.dumps({"error": found}).encode()


def _read(body: bytes) -> dict[str, Any]:
    """A JSON object; empty where it is none: the engine has words for that."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
