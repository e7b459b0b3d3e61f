"""A front's cache of answers, in Redis: what is asked again of one revision, and has one answer, comes from there.

key      a hash of revision, the pod's API key, the caller's, the path, and what is asked, in the engine's words
value    the answer's type, and the answer, whole: of a stream all its events

Whatever is wrong with Redis, the engine answers: it is given a moment, and after an error none for some seconds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass, field

from aiohttp import hdrs, web
from redis import asyncio as redis
from redis.exceptions import RedisError

from finetune_trainer.serving.besides import ERROR_EVENT
from finetune_trainer.serving.one_model import read

ASKED = ("/v1/chat/completions", "/v1/completions")
PATIENCE_SECONDS = 0.5  # for one word of Redis
PAUSE_SECONDS = 5.0
LARGEST = 1 << 20  # bytes of an answer
HEADER = "X-Finetune-Cache"
METRIC = "finetune_response_cache_requests_total"
PREFIX = "finetune:answer:"
STREAM = "text/event-stream"


@dataclass
class Whole:
    """An answer, as it passes."""

    kind: str = ""
    body: bytearray = field(default_factory=bytearray)
    is_good: bool = False  # it came to its end, and can be told again

    def came(self, piece: bytes) -> None:
        """One piece more; what is too large is not kept."""
        if len(self.body) <= LARGEST:
            self.body += piece

    def ended(self, status: int, kind: str, encoding: str | None) -> None:
        """The last piece has come."""
        self.kind, told = kind, bytes(self.body)
        is_whole = (
            b"data: [DONE]" in told[-200:] and ERROR_EVENT not in told if kind.startswith(STREAM) else "choices" in read(told)
        )
        self.is_good = status == web.HTTPOk.status_code and encoding is None and len(told) <= LARGEST and is_whole


@dataclass
class Cache:
    """The answers of one revision, to those who bring one key."""

    url: str = field(repr=False)
    of: tuple[str, ...] = field(repr=False)  # what all keys are made of: the revision, and the pod's own API key
    seconds: int
    counts: Counter[str] = field(default_factory=Counter)
    _away_until: float = 0.0
    _client: redis.Redis | None = None

    def key(self, request: web.Request, body: bytes) -> str | None:
        """Under which its answer is kept; None where it may have another one the next time, or its caller wants a fresh one."""
        asked = read(body) if request.path in ASKED else {}
        temperature, refused = asked.get("temperature"), request.headers.get(hdrs.CACHE_CONTROL, "")
        if type(temperature) not in (int, float) or temperature != 0 or asked.get("n") not in (None, 1) or "no-" in refused:
            self.counts["passed"] += 1
            return None
        told = [*self.of, request.headers.get(hdrs.AUTHORIZATION, ""), request.path, asked]
        return PREFIX + hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    async def found(self, key: str) -> web.Response | None:
        """The answer that is kept."""
        try:
            value = None if time.monotonic() < self._away_until else await self._redis().get(key)
        except (RedisError, OSError, ValueError) as error:
            self._fails(error)
            return None
        if not isinstance(value, bytes):
            self.counts["miss"] += 1
            return None
        self.counts["hit"] += 1
        kind, _, body = value.partition(b"\n")
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: kind.decode(), HEADER: "hit"})

    async def keep(self, key: str, answer: Whole) -> None:
        """Keep what can be told again."""
        if not answer.is_good or time.monotonic() < self._away_until:
            return
        try:
            await self._redis().set(key, answer.kind.encode() + b"\n" + bytes(answer.body), ex=self.seconds)
        except (RedisError, OSError, ValueError) as error:
            self._fails(error)

    def _redis(self) -> redis.Redis:
        if self._client is None:
            wait = PATIENCE_SECONDS
            self._client = redis.from_url(self.url, socket_timeout=wait, socket_connect_timeout=wait, retry=None)
        return self._client

    def _fails(self, error: Exception) -> None:
        # Not its words: they may name the URL, which has a password.
        print(f"no answers are kept for {PAUSE_SECONDS:g} s: Redis fails: {type(error).__name__}", flush=True)
        self.counts["error"] += 1
        self._away_until = time.monotonic() + PAUSE_SECONDS

    def text(self) -> str:
        """What was found, as Prometheus reads it."""
        lines = [f"# TYPE {METRIC} counter"]
        lines += [f'{METRIC}{{result="{result}"}} {self.counts[result]}' for result in ("hit", "miss", "passed", "error")]
        return "\n".join(lines) + "\n"

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
