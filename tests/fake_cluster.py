"""A Cluster in memory, with the same methods, that records what was written. Owner references are not collected."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from finetune_operator.cache import KINDS, Children, Own, key_of
from finetune_operator.decision import Event, Ref
from finetune_operator.errors import AlreadyExists, Conflict, NotFound
from finetune_operator.meta import Key, Object
from finetune_operator.trimmed import SHAPES


class FakeCluster:
    """`writes` tells, in words, what was written; `fail` may raise before a write is made."""

    def __init__(self, *objects: Object) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.writes: list[str] = []
        self.events: list[Event] = []
        self.logs: dict[str, str] = {}
        self.fail: Callable[[str], None] = lambda _: None
        self._version = 0
        for body in objects:
            self._store(body)

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return copy.deepcopy(self.objects.get((kind, namespace, name)))

    async def read(self, namespace: str, ref: Ref) -> Object | None:
        return await self.get(ref.kind, namespace, ref.name)

    async def list(self, kind: str, namespace: str = "", labels: dict[str, str] | None = None) -> tuple[Object, ...]:
        wanted = (labels or {}).items()
        return tuple(
            copy.deepcopy(body)
            for (k, space, _), body in self.objects.items()
            if k == kind and namespace in ("", space) and wanted <= body["metadata"].get("labels", {}).items()
        )

    async def versions(self, kind: str, namespace: str) -> tuple[dict[Key, int], int]:
        found = await self.list(kind, namespace)
        return {key_of(b): int(b["metadata"]["resourceVersion"]) for b in found}, self._version

    async def pages(self, kind: str, namespace: str, labels: dict[str, str]) -> AsyncIterator[tuple[tuple[Object, ...], str]]:
        yield await self.list(kind, namespace, labels), str(self._version)

    def caches(self) -> tuple[Own, Children]:
        """What watches would have told by now."""
        own, children = Own(), Children()
        for body in self.objects.values():
            if body["kind"] in SHAPES:
                (own if body["kind"] in KINDS else children).keep(body)
        return own, children

    async def log_tail(self, namespace: str, pod: str, lines: int) -> str:
        if pod not in self.logs:
            raise NotFound(pod)
        return "\n".join(self.logs[pod].splitlines()[-lines:])

    async def create(self, body: Object) -> Object:
        self._write("create", body)
        if self._key(body) in self.objects:
            raise AlreadyExists(f"{body['metadata']['name']} already exists")
        return self._store(body)

    async def replace(self, body: Object) -> Object:
        self._write("replace", body)
        have = self.objects.get(self._key(body))
        if have is None or have["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion"):
            raise Conflict("the object has been modified")
        return self._store(body)

    async def apply(self, body: Object, manager: str = "") -> Object:
        self._write("apply", body)
        have = self.objects.get(self._key(body), {"metadata": {}})
        if body["metadata"].get("resourceVersion") not in (None, have["metadata"].get("resourceVersion")):
            raise Conflict("the object has been modified")
        return self._store({**have, **body})

    async def merge(self, read: Object, patch: Object) -> Object:
        self._write("merge", read)
        have = self.objects[self._key(read)]
        if have["metadata"]["resourceVersion"] != read["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified")
        metadata = {**have["metadata"], **patch.get("metadata", {})}
        return self._store({**have, "metadata": metadata, "spec": {**have.get("spec", {}), **patch.get("spec", {})}})

    async def annotate(self, kind: str, namespace: str, name: str, uid: str, notes: Mapping[str, str]) -> Object:
        body = {"kind": kind, "metadata": {"namespace": namespace, "name": name}}
        self._write("annotate", body)
        have = self.objects.get((kind, namespace, name))
        if have is None:
            raise NotFound(name)
        if have["metadata"]["uid"] != uid:
            raise Conflict("the uid in the precondition is another's")
        metadata = have["metadata"]
        return self._store({**have, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), **notes}}})

    async def replace_status(self, read: Object, status: dict[str, Any]) -> Object:
        self._write("status", read)
        return self._store({**read, "status": status})

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        have = self.objects.get((kind, namespace, name))
        if have is not None and have["metadata"]["uid"] == uid:
            self._write("delete", have)
            del self.objects[kind, namespace, name]

    async def post_event(self, regarding: Object, event: Event) -> None:
        self._write("event", regarding)
        self.events.append(event)

    def _write(self, verb: str, body: Object) -> None:
        text = f"{verb} {body['kind']} {body['metadata']['name']}"
        self.fail(text)
        self.writes.append(text)

    def _store(self, body: Object) -> Object:
        self._version += 1
        metadata = {"uid": f"uid-{self._version}", **body["metadata"], "resourceVersion": str(self._version)}
        self.objects[self._key(body)] = {**copy.deepcopy(body), "metadata": metadata}
        return copy.deepcopy(self.objects[self._key(body)])

    @staticmethod
    def _key(body: Object) -> tuple[str, str, str]:
        return body["kind"], body["metadata"]["namespace"], body["metadata"]["name"]
