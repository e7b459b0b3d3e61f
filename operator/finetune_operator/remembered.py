"""Objects by name that many passes ask for and that hardly change: what was read of one answers for all, for a while."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic

from finetune_operator.meta import Object

THERE_SECONDS, ABSENT_SECONDS = 300.0, 10.0  # for which an answer holds
MOST = 1000

Ask = Callable[[str, str], Awaitable[Object | None]]  # of a namespace and a name


class Remembered:
    """What `ask` answered. A kind that is not there (it answered a Status) is asked for again as soon as an absent object."""

    def __init__(self, ask: Ask, clock: Callable[[], float] = monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._told: dict[tuple[str, str], tuple[float, Object | None]] = {}  # until when, and what

    async def find(self, namespace: str, name: str) -> Object | None:
        """The object, as it was when it was read last."""
        until, found = self._told.get((namespace, name), (0.0, None))
        if (now := self._clock()) < until:
            return found
        found = await self._ask(namespace, name)
        self._told.pop((namespace, name), None)
        if len(self._told) >= MOST:
            del self._told[next(iter(self._told))]
        is_there = found is not None and found["kind"] != "Status"
        self._told[namespace, name] = now + (THERE_SECONDS if is_there else ABSENT_SECONDS), found
        return found
