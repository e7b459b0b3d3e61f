"""Traffic that does not stop, whatever happens to the pods that answer it: a program for a pod inside the cluster.

    python traffic.py URL MODEL        until the file STOP is there; then the report, as JSON, is the last line

Callers side by side: over fresh connections and over one that is kept, plain answers and streams. A connection's first
question is which model it has reached, so that it is known which revision answers on it. A kept connection that the server
has closed, as it said with its last answer, is opened again, as any client with a pool does. All that goes wrong is told,
also a question on a connection that was closed without a word.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp
from tests.waiting import lasts

STOP = "/tmp/stop"
SECONDS = 30.0  # for one answer
TOKENS = 8
PAUSE_SECONDS = 0.1  # of a caller between two questions: what loads beside needs the CPUs, too
SHOWN = 20  # failures


@dataclass(frozen=True)
class Call:
    """One answer, or why there was none. Seconds since the traffic began."""

    caller: str
    at: float
    took: float
    revision: str
    error: str | None = None


@dataclass(frozen=True)
class Connection:
    """A connection that was asked once which model it has reached."""

    session: aiohttp.ClientSession
    revision: str
    opened: list[int]  # how many connections the session has needed


@dataclass
class Traffic:
    """All calls so far."""

    url: str
    model: str
    began: float = field(default_factory=time.monotonic)
    calls: list[Call] = field(default_factory=list)
    reopened: int = 0  # kept connections that the server closed after an answer

    async def run(self) -> None:
        callers = [self._call(kept, streamed) for kept in (False, True) for streamed in (False, True)]
        await asyncio.gather(*callers)

    async def _call(self, kept: bool, streamed: bool) -> None:
        """One caller, until somebody says stop."""
        name = f"{'kept' if kept else 'fresh'} {'stream' if streamed else 'plain'}"
        while not os.path.exists(STOP):
            try:
                async with self._connection() as connection:
                    while await self._asked(connection, name, streamed) and kept and not os.path.exists(STOP):
                        pass
            except (aiohttp.ClientError, TimeoutError) as error:
                self._told(name, time.monotonic(), "", f"no connection: {type(error).__name__}: {error}")
                await lasts(PAUSE_SECONDS)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """One connection, and the revision that it leads to, as the engine tells of its model."""
        opened = [0]

        async def count(*_: object) -> None:
            opened[0] += 1

        trace = aiohttp.TraceConfig()
        trace.on_connection_create_start.append(count)
        connector, timeout = aiohttp.TCPConnector(limit=1), aiohttp.ClientTimeout(total=SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trace_configs=[trace]) as session:
            async with session.get(f"{self.url}/models") as response:
                response.raise_for_status()
                models = (await response.json())["data"]
            model = next(m for m in models if m["id"] == self.model)
            told = [model.get("root"), model.get("meta"), model.get("max_model_len")]  # an adapter's root has its digest
            yield Connection(session, json.dumps(told, sort_keys=True), opened)

    async def _asked(self, connection: Connection, name: str, streamed: bool) -> bool:
        """One question. Whether the connection can be asked another."""
        begun, wrong = time.monotonic(), None
        messages = [{"role": "user", "content": f"Question {len(self.calls)}?"}]
        body = {"model": self.model, "messages": messages, "max_tokens": TOKENS, "stream": streamed}
        try:
            async with connection.session.post(f"{self.url}/chat/completions", json=body) as response:
                text = await response.text()
                if response.status != 200:
                    wrong = f"HTTP {response.status}: {text[:200]}"
                elif streamed and "data: [DONE]" not in text:
                    wrong = f"cut after {len(text)} bytes"
        except (aiohttp.ClientError, TimeoutError) as error:
            wrong = f"{type(error).__name__}: {error}"
        is_other = connection.opened[0] > 1  # the client saw that it was closed, and opened another
        self.reopened += is_other
        self._told(name, begun, "" if is_other else connection.revision, wrong)
        await lasts(PAUSE_SECONDS)
        return wrong is None and not is_other

    def _told(self, name: str, begun: float, revision: str, wrong: str | None) -> None:
        now = time.monotonic()
        if not self.calls:
            print("begun", flush=True)
        self.calls.append(Call(name, round(begun - self.began, 2), round(now - begun, 2), revision, wrong))

    def report(self) -> dict[str, Any]:
        """The numbers, and what failed."""
        good, bad = ([call for call in self.calls if (call.error is None) == well] for well in (True, False))
        ends = sorted([0.0, *(call.at + call.took for call in good), time.monotonic() - self.began])
        turns = [call.revision for call in sorted(good, key=lambda c: c.at + c.took) if call.revision]
        return {
            "calls": len(self.calls),
            "failed": len(bad),
            "failures": [asdict(call) for call in bad[:SHOWN]],
            "failing": round(max(c.at + c.took for c in bad) - min(c.at for c in bad), 2) if bad else 0.0,
            "reopened": self.reopened,
            "longestGap": round(max(b - a for a, b in pairwise(ends)), 2),
            "slowest": max((call.took for call in good), default=0.0),
            "callers": Counter(call.caller for call in good),
            "revisions": list(Counter(turns).values()),
            "first": turns[0] if turns else "",
            "last": turns[-1] if turns else "",
            "lastByFresh": next((c.revision for c in reversed(good) if c.caller.startswith("fresh")), ""),
        }


def main() -> None:
    url, model = sys.argv[1:]
    traffic = Traffic(url.rstrip("/"), model)
    asyncio.run(traffic.run())
    print(json.dumps(traffic.report()), flush=True)


if __name__ == "__main__":
    main()
