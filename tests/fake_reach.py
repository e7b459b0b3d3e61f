"""The cluster as a person at a command line reaches it, in memory."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from finetune_operator.cli import reach
from finetune_operator.cli.commands import app
from finetune_operator.cli.kinds import Right
from finetune_operator.errors import Forbidden, NotFound
from finetune_operator.meta import Object


class FakeReach:
    """Objects by kind and name. `story` holds the states that an object goes through while it is followed."""

    def __init__(self, *objects: Object) -> None:
        self.namespace = "default"
        self.objects = {(o["kind"], o["metadata"]["name"]): o for o in objects}
        self.story: list[Object] = []
        self.logs: dict[str, list[str]] = {}
        self.forbidden: set[str] = set()
        self.served: dict[str, frozenset[str]] = {}
        self.unreadable: set[str] = set()
        self.deleted: list[str] = []

    async def close(self) -> None: ...

    async def get(self, kind: str, name: str) -> Object | None:
        return copy.deepcopy(self.objects.get((kind, name)))

    async def list(self, kind: str, labels: Mapping[str, str] | None = None, namespace: str | None = None) -> list[Object]:
        if kind in self.unreadable:
            raise Forbidden(f"{kind} is forbidden")
        wanted = (labels or {}).items()
        return [
            {**copy.deepcopy(body), "kind": kind}
            for (k, _), body in self.objects.items()
            if k == kind and wanted <= body["metadata"].get("labels", {}).items()
        ]

    async def follow(self, kind: str, name: str) -> AsyncIterator[Object]:
        for body in self.story:
            self.objects[kind, name] = body
            yield copy.deepcopy(body)

    async def change(self, body: Object, patch: Object) -> Object:
        key = body["kind"], body["metadata"]["name"]
        assert body["metadata"]["uid"] == self.objects[key]["metadata"]["uid"]
        self.objects[key] = merged(self.objects[key], patch)
        return self.objects[key]

    async def delete(self, body: Object) -> None:
        self.deleted.append(f"{body['kind']} {body['metadata']['name']}")

    async def log(self, pod: str, container: str, *, follow: bool = False, tail: int | None = None) -> AsyncIterator[str]:
        assert container == "step"
        if pod not in self.logs:
            raise NotFound(pod)
        for line in self.logs[pod]:
            yield line

    async def may(self, right: Right, user: str | None = None) -> bool:
        return f"{user} {right}" not in self.forbidden if user else str(right) not in self.forbidden

    async def resources(self, api_version: str) -> frozenset[str]:
        return self.served.get(api_version, frozenset())


def merged(value: Any, patch: Any) -> Any:
    """A merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    old = value if isinstance(value, dict) else {}
    return {**old, **{k: merged(old.get(k), v) for k, v in patch.items() if v is not None}}


def call(monkeypatch: pytest.MonkeyPatch, cluster: FakeReach, *arguments: str, typed: str | None = None) -> Result:
    """`finetune` with these arguments, in that cluster; `typed` is what comes in."""

    async def connect(_context: str | None, namespace: str | None) -> FakeReach:
        cluster.namespace = namespace or cluster.namespace
        return cluster

    monkeypatch.setattr(reach, "connect", connect)
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner().invoke(app, list(arguments), input=typed)
