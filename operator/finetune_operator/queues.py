"""LocalQueues by name. Many jobs wait in few of them, so what was read of one answers for all, for a while."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from finetune_operator.apiserver import ApiServer, Request
from finetune_operator.errors import Forbidden, NotFound
from finetune_operator.kueue import KUEUE, NOT_SERVED, UNTOLD
from finetune_operator.meta import Object
from finetune_operator.resources import Resource

THERE_SECONDS, ABSENT_SECONDS = 300.0, 10.0  # for which an answer holds
REMEMBERED = 1000


class Queues:
    """What the API server said of each queue that a Job waits in."""

    def __init__(self, api: ApiServer, clock: Callable[[], float] = monotonic) -> None:
        self._api = api
        self._clock = clock
        self._told: dict[tuple[str, str], tuple[float, Object | None]] = {}  # until when, and what

    async def find(self, namespace: str, name: str) -> Object | None:
        """The queue; None where there is none of that name, NOT_SERVED where there is no Kueue."""
        until, found = self._told.get((namespace, name), (0.0, None))
        if (now := self._clock()) < until:
            return found
        found = await self._ask(namespace, name)
        self._told.pop((namespace, name), None)
        if len(self._told) >= REMEMBERED:
            del self._told[next(iter(self._told))]
        is_there = found is not None and found != NOT_SERVED
        self._told[namespace, name] = now + (THERE_SECONDS if is_there else ABSENT_SECONDS), found
        return found

    async def _ask(self, namespace: str, name: str) -> Object | None:
        """In the version that this Kueue prefers: releases of it serve different ones."""
        try:
            group = await self._api.json(Request("GET", f"/apis/{KUEUE}"))
        except NotFound:
            return NOT_SERVED
        except Forbidden:
            return UNTOLD
        queues = Resource(group["preferredVersion"]["groupVersion"], "localqueues")
        try:
            return await self._api.json(Request("GET", queues.path(namespace, name)))
        except NotFound:
            return None
        except Forbidden:  # the roles are older than the operator
            return UNTOLD
