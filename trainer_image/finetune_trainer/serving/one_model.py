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
from finetune_trainer.serving.besides import INVALID, NOT_FOUND, SHOWN, Ask, Besides, error, not_served, refusal

HELD = (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.NOT_IMPLEMENTED)


@dataclass(frozen=True)
class OneModel(Besides):
    """The only model that an engine has."""

    manners: Manners

    async def own_answer(self, request: web.Request, ask: Ask) -> web.Response | None:
        if request.path.startswith(self.manners.hidden):
            return not_served(request)
        if request.method != hdrs.METH_POST:
            return None
        name = read(await request.read()).get("model")
        if name is None or name == self.manners.model:
            return None
        message = f"the model `{str(name)[:SHOWN]}` does not exist here; ask for `{self.manners.model}`"
        return refusal(HTTPStatus.NOT_FOUND, message, NOT_FOUND, "model")

    async def renamed(self, request: web.Request) -> bytes | None:
        # It is the caller's own, as it was read before.
        return await request.read() if request.method == hdrs.METH_POST else None

    def holds(self, path: str, status: int) -> bool:
        return status in HELD

    def told(self, status: int, body: bytes) -> tuple[int, bytes]:
        said = read(body).get("error")
        message = str(said.get("message", "")) if isinstance(said, dict) else ""
        if status != HTTPStatus.NOT_IMPLEMENTED and not any(words in message for words in self.manners.askers_faults):
            return status, body
        return HTTPStatus.BAD_REQUEST, json.dumps(error(HTTPStatus.BAD_REQUEST, message, INVALID)).encode()


def read(body: bytes) -> dict[str, Any]:
    """A JSON object; empty where it is none: the engine has words for that."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
