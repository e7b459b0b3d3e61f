"""What the front of an engine with adapters does besides: callers know an adapter by its name, the engine by name and digest.

POST /v1/…  {"model": "support"} ──► {"model": "support@1a2b3c4d"}      answers tell the engine's name: which one it was
GET /v1/models                   ──► support, in place of support@1a2b3c4d
GET /finetune/adapters           ──► how each adapter stands in this pod
GET /health                      ──► 503 until the adapters that serve are loaded, or were tried for long enough
…lora_adapter                    ──► 404: the engine's own API for adapters is the keeper's alone (adapters.py)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import hdrs, web
from pydantic import ValidationError

from finetune_trainer.contract.manners import HEALTH
from finetune_trainer.contract.served_adapters import NAMES, PATH, STATE, PodAdapters
from finetune_trainer.serving.besides import Ask, Besides

LARGEST_BODY = 32 << 20  # bytes of a request that names a model: it is held in memory
ADMIN = "lora_adapter"  # in the paths of the engine's API for adapters, however they are written
MODELS, METRICS = "/v1/models", "/metrics"


@dataclass
class Adapters(Besides):
    """What the keeper tells in its folder."""

    folder: Path
    _read_at: dict[str, int] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """What the engine calls an adapter, by the name that callers know."""
        found: dict[str, str] = json.loads(self._text(NAMES) or "{}")
        return found

    @property
    def state(self) -> PodAdapters:
        try:
            return PodAdapters.model_validate_json(self._text(STATE))
        except ValidationError:  # the keeper has not told anything yet
            return PodAdapters(version="")

    def _text(self, name: str) -> str:
        """A file's text, which the keeper puts in its place as a whole."""
        path = self.folder / name
        try:
            changed = path.stat().st_mtime_ns
            if self._read_at.get(name) != changed:
                self._texts[name], self._read_at[name] = path.read_text(encoding="utf-8"), changed
        except OSError:
            return self._texts.get(name, "")
        return self._texts[name]

    async def own_answer(self, request: web.Request, ask: Ask) -> web.Response | None:
        if ADMIN in request.path:
            error = {"message": "adapters are loaded by spec.adapters of the ModelServe", "type": "NotFoundError", "code": 404}
            return web.json_response({"error": error}, status=404)
        if request.path == PATH:
            return web.json_response(text=self.state.model_dump_json(by_alias=True, exclude_none=True))
        if request.path == HEALTH and not self.state.settled:
            return web.json_response({"error": {"message": "adapters are being loaded", "code": 503}}, status=503)
        return None

    async def renamed(self, request: web.Request) -> bytes | None:
        # Under the engine's name of an adapter.
        if request.method != hdrs.METH_POST or not request.body_exists or not request.content_type.endswith("json"):
            return None
        body = await request.read()  # kept by the request: who passes it on gets all of it
        try:
            asked = json.loads(body)
            name = self.names.get(asked["model"])
        except (ValueError, TypeError, KeyError, RecursionError):  # the engine has words for what it can't read
            return body
        return body if name is None else json.dumps({**asked, "model": name}, ensure_ascii=False).encode()

    def holds(self, path: str, status: int) -> bool:
        return path == MODELS and status == 200

    def told(self, status: int, body: bytes) -> tuple[int, bytes]:
        # The engine's list of models with the names that callers know.
        public = {engine: name for name, engine in self.names.items()}
        found: dict[str, Any] = json.loads(body)
        cards = [card | {"id": public.get(card["id"], card["id"])} for card in found["data"]]
        return status, json.dumps(found | {"data": cards}).encode()
