"""Lists and watches of the children: Kopf keeps whole objects and does not show a watch that died, so these are our own.

list in pages ─► watch from there ─┬─ ended, silent, refused ─► watch again from the last version
                    ▲              └─ 410 Gone ─► list again: what is no longer in it was deleted in between
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from finetune_operator import metrics
from finetune_operator.cache import Children, key_of
from finetune_operator.cluster import Cluster
from finetune_operator.errors import ClusterError, Gone, NotFound, Unavailable
from finetune_operator.meta import Object
from finetune_operator.names import FIELD_MANAGER, LABEL_MANAGED_BY

WATCHED = (
    *("Job", "Pod", "Deployment", "Service", "ConfigMap", "ControllerRevision"),
    *("NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget", "HTTPRoute"),
)
OPTIONAL = ("HTTPRoute",)  # a cluster may not have such a kind, or get it later
MANAGED = {LABEL_MANAGED_BY: FIELD_MANAGER}
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two tries

log = structlog.get_logger("watches")

Told = Callable[[str, Object], None]  # ADDED, MODIFIED or DELETED, and the object


class Watches:
    """One loop for each kind. `told` hears of what is new and of what is gone."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        children: Children,
        told: Told,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._children = children
        self._told = told
        self._sleep = sleep
        self._listed = {kind: asyncio.Event() for kind in WATCHED}

    async def all_listed(self) -> None:
        """Return when each kind was listed once: no pass may believe before that that a child is missing."""
        for listed in self._listed.values():
            await listed.wait()

    async def follow(self, kind: str) -> None:
        """Keep the children of one kind, for ever."""
        version, pause = "", FIRST_PAUSE
        while True:
            try:
                if not version:
                    version = await self._list(kind)
                    self._listed[kind].set()
                async for at in self._changes(kind, version):
                    version, pause = at, FIRST_PAUSE
                await self._sleep(FIRST_PAUSE)  # the server ends each after some minutes; an ill one at once
            except Gone:
                version = ""
            except ClusterError as error:
                if isinstance(error, NotFound) and kind in OPTIONAL:
                    version, pause = "", LONGEST_PAUSE
                    self._is_not_served(kind)
                    await self._sleep(pause)
                    continue
                log.warning("watch interrupted", kind=kind, error=str(error), again_in=pause)
                await self._sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def _is_not_served(self, kind: str) -> None:
        if kind not in self._children.unserved:
            log.info("the cluster does not serve it", kind=kind)
        self._children.unserved.add(kind)
        for key in self._children.keys(kind):
            self._drop(self._children.get(key), self._children.version(key))
        self._listed[kind].set()

    async def _list(self, kind: str) -> str:
        seen, version = set(), ""
        async for page, at in self._cluster.pages(kind, self._namespace, MANAGED):
            version = at
            self._children.unserved.discard(kind)
            for body in page:
                seen.add(key_of(body))
                self._keep(kind, "ADDED", body)
        for key in self._children.keys(kind):
            # What is newer than the list was written by us in between.
            if key not in seen and self._children.version(key) <= int(version):
                self._drop(self._children.get(key), int(version))
        return version

    async def _changes(self, kind: str, version: str) -> AsyncIterator[str]:
        """The version after each change, until the server ends the watch."""
        async for event in self._cluster.watch(kind, self._namespace, MANAGED, version):
            body = event["object"]
            if event["type"] == "ERROR":
                raise Gone("the version is too old") if body.get("code") == 410 else Unavailable(str(body.get("message")))
            metrics.WATCH_EVENTS.labels(kind).inc()
            if event["type"] == "DELETED":
                self._drop({**body, "kind": kind}, int(body["metadata"]["resourceVersion"]))
            elif event["type"] != "BOOKMARK":
                self._keep(kind, event["type"], {**body, "kind": kind})
            yield body["metadata"]["resourceVersion"]

    def _keep(self, kind: str, change: str, body: Object) -> None:
        try:
            # Few are: only of these is what was kept before looked at, which takes decoding it.
            before = self._children.get(key_of(body)) if self._children.is_remains(body) else None
            if self._children.keep(body) and not (before and self._children.is_remains(before)):
                self._told(change, body)
        except Exception:  # one object that we can't make sense of must not hide the others
            log.exception("child not kept", kind=kind, name=body["metadata"].get("name"))

    def _drop(self, body: Object | None, version: int) -> None:
        if body is None:
            return
        key, uid = key_of(body), body["metadata"]["uid"]
        known = self._children.uid(key) == uid  # what we deleted ourselves is no news
        self._children.drop(key, uid, version)
        if known and not self._children.is_remains(body):
            self._told("DELETED", body)
