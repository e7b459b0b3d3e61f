"""The loops around reconcile: workers that take keys, the progress of running pods, and the resync that trusts nothing.

events ─► queue ─► work (N workers) ─► reconcile ─┬─► done: again after requeue_after
             ▲                                    └─► failed: again after a backoff
             ├── list_all, once, before the first pass
             ├── read_progress, every few seconds
             └── resync, every few minutes: all objects looked for anew
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import structlog

from finetune_operator import metrics
from finetune_operator.acting import Means
from finetune_operator.applied import Applied
from finetune_operator.cache import KINDS, Children, Own, is_new, key_of
from finetune_operator.cluster import Cluster
from finetune_operator.errors import ClusterError, Conflict, NotLeader, Unavailable
from finetune_operator.meta import Key
from finetune_operator.progress_reader import ProgressReader
from finetune_operator.reconcile import Kind, Outcome, reconcile
from finetune_operator.settings import Settings
from finetune_operator.tracing import SILENT, Pass, Traces
from finetune_operator.workqueue import Rank, ShutDown, WorkQueue

log = structlog.get_logger("reconcile")

LIST_PAUSE = 2.0  # seconds between two tries


class WatchDied(Exception):
    """Objects changed a whole resync ago and no event has told of it."""


@dataclass(frozen=True)
class Controller:
    """All that the loops share."""

    kinds: Mapping[str, Kind]
    cluster: Cluster
    queue: WorkQueue[Key]
    progress: ProgressReader
    own: Own
    children: Children
    settings: Settings
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    traces: Traces = SILENT

    @cached_property
    def _means(self) -> Means:
        return Means(self.cluster, self.own, self.children, Applied(), self.progress.of, self.settings, self.traces)

    async def list_all(self) -> None:
        """Keep all FineTuneJobs and ModelServes and wake them. Return when each was listed once: a pass believes what it
        knows of the other kind, so a job whose ModelServe was not told of yet would make it anew, above what people set there.
        """
        for kind in KINDS:
            while not await self._listed(kind):
                await self.sleep(LIST_PAUSE)

    async def _listed(self, kind: str) -> bool:
        try:
            async for page, _ in self.cluster.pages(kind, self.settings.namespace, {}):
                for body in page:
                    self.own.keep(body)
                    self.queue.add(key_of(body), Rank.NEW if is_new(body) else Rank.ROUTINE)
        except ClusterError as error:
            log.warning("list put off", kind=kind, error=str(error), again_in=LIST_PAUSE)
            return False
        return True

    async def work(self) -> None:
        """One worker, until the queue is shut down. Raises NotLeader, after which nothing may be written."""
        while True:
            try:
                key = await self.queue.get()
            except ShutDown:
                return
            try:
                with (
                    metrics.ACTIVE_WORKERS.labels(key.kind).track_inprogress(),
                    metrics.RECONCILE_SECONDS.labels(key.kind).time(),
                ):
                    await self._one_pass(key)
            finally:
                self.queue.done(key)

    async def _one_pass(self, key: Key) -> None:
        version = self.own.version(key)
        with self.traces.a_pass(key, self.own.get(key)) as told:
            await self._reconciled(key, told)
        body = self.own.get(key) if self.own.version(key) != version else None
        for related in () if body is None else self.own.related(key, body):
            self.queue.add(related)

    async def _reconciled(self, key: Key, told: Pass) -> None:
        begin = time.monotonic()
        try:
            outcome = await reconcile(key, self.kinds[key.kind], self._means, self.now())
        except NotLeader:
            raise
        except ClusterError as error:
            told.failed(error)
            self._failed(key, error, begin)
        except Exception as error:  # a policy's own fault must not stop the other objects
            told.failed(error)
            self._failed(key, error, begin, fault=True)
        else:
            told.outcome = outcome.result if outcome.writes else ""
            self._passed(key, outcome, begin)

    def _passed(self, key: Key, outcome: Outcome, begin: float) -> None:
        self.queue.forget(key)
        again = {Rank.WORK: outcome.requeue_after, Rank.PROGRESS: outcome.look_after}
        for rank, seconds in again.items():
            if seconds is not None:
                self.queue.add_after(key, seconds, rank)
        result = "success" if set(again.values()) == {None} else "requeue_after"
        metrics.RECONCILES.labels(key.kind, result).inc()
        line = log.info if outcome.writes else log.debug
        line(
            outcome.result,
            key=str(key),
            generation=outcome.generation,
            writes=outcome.writes,
            seconds=round(time.monotonic() - begin, 3),
        )

    def _failed(self, key: Key, error: Exception, begin: float, *, fault: bool = False) -> None:
        wish = error.retry_after if isinstance(error, Unavailable) else None
        delay = self.queue.add_failed(key, wish or 0.0)
        if isinstance(error, Conflict):  # somebody else wrote in between: the next pass reads that
            metrics.RECONCILES.labels(key.kind, "requeue").inc()
        else:
            metrics.RECONCILES.labels(key.kind, "error").inc()
            metrics.RECONCILE_ERRORS.labels(key.kind).inc()
        log.error(
            "failed",
            key=str(key),
            error=f"{type(error).__name__}: {error}",
            again_in=round(delay, 1),
            seconds=round(time.monotonic() - begin, 3),
            exc_info=error if fault else None,
        )

    async def read_progress(self) -> None:
        """Wake the owners of pods that have something new to tell, for ever."""
        while True:
            for key in await self.progress.read_all():
                self.queue.add(key, Rank.PROGRESS)
            await self.sleep(self.settings.progress_seconds)

    async def resync(self) -> None:
        """Look whether the events tell of all objects, and wake all of them, for ever. Raises WatchDied where they don't."""
        before: dict[Key, int] = {}
        while True:
            await self.sleep(self.settings.resync_seconds)
            try:
                listed = await self._versions()
            except ClusterError as error:
                log.warning("resync put off", error=str(error))
                continue
            missed = [k for k in before if k in listed and self.own.version(k) < before[k]]
            if missed:
                raise WatchDied(f"no event told of {missed[0]} since the last resync")
            for key in listed:
                self.queue.add(key, Rank.ROUTINE)
            before = listed

    async def _versions(self) -> dict[Key, int]:
        """Each object's version. Objects of which no event told that they are gone are dropped."""
        found: dict[Key, int] = {}
        for kind in KINDS:
            versions, of_list = await self.cluster.versions(kind, self.settings.namespace)
            for key in self.own.keys(kind):
                body = self.own.get(key)
                if key not in versions and body is not None and self.own.version(key) <= of_list:
                    self.own.drop(key, body["metadata"]["uid"], of_list)
            found |= versions
        return found
