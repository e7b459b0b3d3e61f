"""Keys that wait for a pass: each once, never two passes of one key at a time, slower after failures.

What is at work goes before what is new: a thousand jobs that come at once begin one after the other instead of waiting for each
other at each of their steps. That something goes on is told after that, where there is time, and what is only looked at again
comes last. None waits for ever: see TURN.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import Callable, Hashable
from enum import IntEnum
from typing import Generic, TypeVar

from finetune_operator import metrics

K = TypeVar("K", bound=Hashable)

FIRST_DELAY = 0.5  # seconds after the first failure; doubled by each further one
LONGEST_DELAY = 300.0
TURN = 16  # of so many keys at least one is of each rank, where such wait, however much is at work


class Rank(IntEnum):
    """Why a key waits; the first goes first."""

    WORK = 0  # something happened to what is at work
    NEW = 1  # no pass has told of it yet
    PROGRESS = 2  # what is at work goes on: the next pass may as well tell of it
    ROUTINE = 3  # nothing is known to have happened


class ShutDown(Exception):
    """The queue gives out no more keys."""


class WorkQueue(Generic[K]):
    """`get` hands out a key, `done` gives it back; a key added in between is handed out once more, after `done`.

    `clock` gives seconds; `jitter` a number from 0 to 1, which spreads the retries of many keys by up to a half.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._ready = {rank: dict[K, float]() for rank in Rank}  # since when, in the order in which they came
        self._handed_out = 0
        self._due: dict[tuple[K, Rank], float] = {}
        self._heap: list[tuple[float, int, tuple[K, Rank]]] = []  # of _due, and what was due before it was asked for otherwise
        self._order = itertools.count()
        self._busy: dict[K, float] = {}  # since when
        self._failures: dict[K, int] = {}
        self._closed = False
        self._changed = asyncio.Event()

    def add(self, key: K, rank: Rank = Rank.WORK) -> None:
        """Hand the key out as soon as a worker asks and its rank is at its turn. Of two ranks the first counts."""
        before = self._rank_of(key)
        if before is None:
            metrics.QUEUE_ADDS.inc()
            self._ready[rank][key] = self._clock()
        elif rank < before:
            self._ready[rank][key] = self._ready[before].pop(key)
        self._wake()

    def add_after(self, key: K, seconds: float, rank: Rank = Rank.WORK) -> None:
        """Add the key after so many seconds, unless it is handed out earlier. Of two times for one rank the earlier counts."""
        if (before := self._rank_of(key)) is None or rank < before:
            when, due = self._clock() + seconds, (key, rank)
            if when < self._due.get(due, float("inf")):
                self._due[due] = when
                heapq.heappush(self._heap, (when, next(self._order), due))
                self._wake()

    def add_failed(self, key: K, at_least: float = 0.0) -> float:
        """Hand the key out again after a delay that doubles with each failure. Returns the delay in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        metrics.QUEUE_RETRIES.inc()
        delay = min(FIRST_DELAY * 2.0 ** min(failures - 1, 30), LONGEST_DELAY) * (1 + self._jitter() / 2)
        self.add_after(key, max(delay, at_least))
        return max(delay, at_least)

    def forget(self, key: K) -> None:
        """A pass went well: the next failure counts as the first."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The next key, when there is one. Raises ShutDown after `shut_down`."""
        while not self._closed:
            if (key := self._next()) is not None:
                return key
            self._changed.clear()
            # A wait that times out is how a key whose time has come is found.
            try:
                await asyncio.wait_for(self._changed.wait(), self._until_due())
            except TimeoutError:
                continue
        raise ShutDown

    def done(self, key: K) -> None:
        """The pass is over, however it ended."""
        if (since := self._busy.pop(key, None)) is not None:
            metrics.QUEUE_WORKS.observe(self._clock() - since)
        self._wake()

    def longest_pass(self) -> float:
        """Seconds for which the oldest pass that runs has run; 0 where none does."""
        return self._clock() - min(self._busy.values()) if self._busy else 0.0

    def shut_down(self) -> None:
        """Give out nothing more; passes that run may end."""
        self._closed = True
        self._wake()

    def _rank_of(self, key: K) -> Rank | None:
        """The rank by which a key is ready; None where it is not."""
        return next((rank for rank in Rank if key in self._ready[rank]), None)

    def _next(self) -> K | None:
        while (when := self._next_due()) is not None and when <= self._clock():
            due = heapq.heappop(self._heap)[2]
            del self._due[due]
            self.add(*due)
        ready, key = next(((r, k) for r in self._ranked() for k in r if k not in self._busy), ({}, None))
        if key is not None:
            self._handed_out += 1
            for rank in Rank:
                self._due.pop((key, rank), None)  # the pass that begins says when the next one is due
            self._busy[key] = self._clock()
            metrics.QUEUE_WAITS.observe(self._busy[key] - ready.pop(key))
        metrics.QUEUE_DEPTH.set(sum(map(len, self._ready.values())))
        return key

    def _ranked(self) -> list[dict[K, float]]:
        """Those that are ready, rank by rank in the order in which they are looked at for the next key."""
        turns = {TURN // 4: Rank.NEW, TURN // 2: Rank.PROGRESS, TURN - 1: Rank.ROUTINE}
        first = turns.get(self._handed_out % TURN, Rank.WORK)
        return [self._ready[rank] for rank in sorted(Rank, key=lambda rank: (rank is not first, rank))]

    def _until_due(self) -> float | None:
        when = self._next_due()
        return None if when is None else max(0.0, when - self._clock())

    def _next_due(self) -> float | None:
        """The earliest time at which a key is due; entries of the heap that were overtaken are thrown away."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _wake(self) -> None:
        self._changed.set()
