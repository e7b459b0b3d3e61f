"""What the front does for an engine that does no more than write answers, as `transformers serve` and Ollama do.

What that is, is said of each engine as a value (contract/manners.py).

GET /v1/models       ──► the model, by its name                 GET /metrics ──► what the front has counted
no key, a wrong one  ──► 401                                    other paths  ──► 404
fields, pictures and tools that the engine would pass over in silence, a prompt that leaves no room for its answer ──► 400

Nobody but the engine can count a prompt's tokens. Where it may be too long, the engine is asked for one token of an answer
first, and tells; no token is shorter than a byte, so most prompts need no such question. One that leaves out messages counts
the others alone. It has left one out if the conversation has as many tokens without that which would be the first to go.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp import hdrs, web

from finetune_trainer.contract.manners import HEALTH, Lacks
from finetune_trainer.serving.besides import ERROR_EVENT, INVALID, Ask, brings, error, keyless, not_served, refusal
from finetune_trainer.serving.fitted import CHAT, Facts, fitted, shortened, wrongs
from finetune_trainer.serving.named import METRICS, MODELS
from finetune_trainer.serving.near import Found
from finetune_trainer.serving.one_model import OneModel, read
from finetune_trainer.serving.tallied import Tally

BODY = web.RequestKey("body", bytes)  # what the engine is asked in the request's place
AROUND = 256  # tokens that a chat template writes around messages, at most
STREAM = "text/event-stream"
END = b"data: [DONE]\n\n"
TAIL = 4096  # bytes
TOKEN = re.compile(rb'"(?:content|text)":"')


@dataclass(frozen=True)
class Lacking(OneModel):
    """The only model of such an engine."""

    lacks: Lacks
    facts: Facts
    api_key: str | None = field(default=None, repr=False)
    tally: Tally = field(default_factory=lambda: Tally())

    async def own_answer(self, request: web.Request, ask: Ask) -> web.Response | None:
        if request.path == METRICS:
            return web.Response(text=self.tally.text(self.lacks.metrics, self.lacks.at_once))
        if request.path == HEALTH:
            return None
        if self.api_key is not None and not brings(request, self.api_key):
            return keyless()
        if request.path == MODELS and request.method == hdrs.METH_GET:
            card = {"id": self.manners.model, "object": "model", "max_model_len": self.facts.context}
            return web.json_response({"object": "list", "data": [card]})
        if request.path not in self.lacks.reached or request.method != hdrs.METH_POST:
            return not_served(request)
        return await super().own_answer(request, ask) or await self._unfit(request, ask)

    async def _unfit(self, request: web.Request, ask: Ask) -> web.Response | None:
        """A refusal of what the engine would answer wrongly; None where the request was made ready for it."""
        asked = read(await request.read())
        for param, text in wrongs(request.path, asked, self.lacks, self.facts):
            return refusal(HTTPStatus.BAD_REQUEST, text, INVALID, param)
        body, context = fitted(request.path, asked, self.lacks, self.manners.model, self.facts), self.facts.context
        if context is not None and len(await request.read()) + AROUND + body["max_tokens"] > context:
            room = context - await self._tokens(request.path, body, context, ask)
            wanted = any(asked.get(name) for name in ("max_tokens", *self.lacks.renamed))
            if room < (body["max_tokens"] if wanted else 1):
                text = f"the model's context is {context} tokens, the prompt has {context - room}{' or more' * (room == 0)}"
                text += f", and max_tokens asks for {body['max_tokens']} more" if wanted else ""
                return refusal(HTTPStatus.BAD_REQUEST, text, INVALID, "messages" if "messages" in body else "prompt")
            body["max_tokens"] = min(body["max_tokens"], room)
        request[BODY] = json.dumps(body, ensure_ascii=False).encode()
        return None

    async def _tokens(self, path: str, body: dict[str, Any], context: int, ask: Ask) -> int:
        """Tokens of the prompt, as the engine counts them; `context` where it has left messages out."""
        counted = await _counted(path, body, ask)
        shorter = shortened(body["messages"]) if path == CHAT and self.lacks.leaves_out else None
        longest = max((len(json.dumps(message)) for message in body.get("messages", ())), default=0)
        if shorter is None or not counted or counted + longest + AROUND <= context:  # there was room for any of them
            return counted
        return counted if await _counted(path, {**body, "messages": shorter}, ask) < counted else context

    def leads_to(self, request: web.Request) -> str:
        return self.lacks.health if request.path == HEALTH else super().leads_to(request)

    async def renamed(self, request: web.Request) -> bytes | None:
        return request.get(BODY)

    def holds(self, path: str, status: int) -> bool:
        return status >= HTTPStatus.BAD_REQUEST and path != HEALTH

    def told(self, status: int, body: bytes) -> tuple[int, bytes]:
        # FastAPI's words or OpenAI's, or none, as OpenAI's clients read them.
        found, said = read(body).get("detail"), read(body).get("error")
        found = said.get("message") if isinstance(said, dict) else found
        message = found if isinstance(found, str) else json.dumps(found) if found else "the engine failed; see its log"
        status = HTTPStatus.BAD_REQUEST if any(words in message for words in self.manners.askers_faults) else status
        kind = INVALID if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
        return status, json.dumps(error(status, message, kind)).encode()

    async def pieces(self, found: Found) -> AsyncIterator[bytes]:
        if found.content_type != STREAM:
            async for piece in super().pieces(found):
                yield piece
            return
        tail, timed = b"", self.tally.timed()
        async for piece in super().pieces(found):
            tail = (tail + piece)[-TAIL:]
            timed.came(len(TOKEN.findall(piece)))
            yield piece
        if END not in tail and ERROR_EVENT not in tail:
            yield END

    def begun(self, request: web.Request) -> None:
        if request.path in self.lacks.reached:
            self.tally.running += 1

    def ended(self, request: web.Request, status: int | None) -> None:
        if request.path in self.lacks.reached:
            self.tally.running -= 1
            self.tally.answered(request.path, request.method, status)


async def _counted(path: str, body: dict[str, Any], ask: Ask) -> int:
    """Tokens of the prompt, as the engine counts them; 0 where it doesn't tell: it has words of its own for what is wrong."""
    try:
        _, answer = await ask(path, json.dumps({**body, "max_tokens": 1, "stream": False}).encode())
    except aiohttp.ClientError:
        return 0
    usage = read(answer).get("usage")
    return int(usage.get("prompt_tokens", 0)) if isinstance(usage, dict) else 0
