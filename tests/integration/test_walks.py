"""Random walks of edits of a FineTuneJob, on a real API server: each ends where a fresh job of the last spec ends.

An edit sets one field of the CRD's schema to a value that the schema allows, or is one of those that people make. Every
fifth is broken, and taken back. What the API server refuses is no edit.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from localcluster.api import ApiError
from tests.integration.conftest import FINETUNE, Operator, World
from tests.integration.fake_node import FakeNode
from tests.integration.test_crashes import PROGRAM, apply_facts, apply_rows, trainer
from tests.integration.test_operator import quiet
from tests.waiting import wait_until, within

from finetune_operator.api.crdgen import Schema, schema_of
from finetune_operator.api.finetunejob import FineTuneJobSpec

EDITS = 15
SAME_SECONDS = 90.0
OF_TIME = ("ttlSecondsAfterFinished", "activeDeadlineSeconds", "pendingDeadlineSeconds")  # their end depends on the clock
Field = tuple[tuple[str, ...], Schema]

PEOPLES: tuple[dict[str, Any], ...] = (
    {"suspend": True},
    {"suspend": False},
    {"artifacts": []},
    {"artifacts": [{"name": "q8", "format": "GGUF", "quantization": "Q8_0"}]},
    {"training": {"method": "Full"}},
    {"training": {"lora": {"rank": 4}}},
    {"evaluation": {"gates": [{"metric": "loss", "max": 100}]}},
    {"serving": {"template": {"engine": {"type": "LlamaCpp"}, "parallelism": {"gpus": False}}}},
    {"serving": None},
)
BROKEN: tuple[dict[str, Any], ...] = (
    {"dataset": {"uri": "configmap://absent/train.jsonl"}},
    {"model": {"secretRef": {"name": "absent"}}},
    {"storage": {"artifacts": {"uri": "s3://bucket/x", "secretRef": {"name": "absent"}}}},
    {"storage": {"artifacts": {"uri": "pvc://absent/x"}}},
    {"profile": "no-such-machine"},
    {"serving": {"template": {"engine": {"type": "LlamaCpp"}, "parallelism": {"tensor": 2}}}},
    {"training": {"seed": -(2**63)}},
    {"model": {"uri": "hf://\u202eevil/x"}},
    {"podTemplate": {"metadata": {"labels": {"finetune.dev/job": "mine"}}}},
)


def fields(schema: Schema, at: tuple[str, ...] = ()) -> Iterator[Field]:
    """All fields of the schema that hold one value."""
    for name, inner in schema.get("properties", {}).items():
        if name in OF_TIME:
            continue
        if "properties" in inner:
            yield from fields(inner, (*at, name))
        elif inner.get("type") in ("boolean", "integer", "number") or "enum" in inner:
            yield (*at, name), inner


def value_of(schema: Schema, dice: random.Random) -> Any:
    """A value that the schema allows, the bounds among them."""
    if "enum" in schema:
        return dice.choice([v for v in schema["enum"] if v is not None])
    if schema["type"] == "boolean":
        return dice.random() < 0.5
    least, most = schema.get("minimum", 0), schema.get("maximum", 10**6)
    drawn = dice.choice([least, least + (most - least) / 3, min(most, least + 1)])
    return int(drawn) if schema["type"] == "integer" else drawn


def patch_of(field: Field, dice: random.Random) -> dict[str, Any]:
    path, schema = field
    patch: Any = value_of(schema, dice)
    for name in reversed(path):
        patch = {name: patch}
    return dict(patch)


class Walk:
    """One job that is edited, and the operator that must not die of it."""

    def __init__(self, world: World, path: str, operator: Operator) -> None:
        self._world = world
        self._path = path
        self._operator = operator
        self.taken = 0

    @property
    def spec(self) -> dict[str, Any]:
        return copy.deepcopy(self._world.read(self._path)["spec"])

    def edit(self, patch: dict[str, Any]) -> None:
        """Merge into the spec; then the operator says that it has seen it."""
        try:
            self._world.api.request("PATCH", self._path, {"spec": patch}, "application/merge-patch+json")
        except ApiError as error:
            if error.code not in (400, 422):
                raise
            return
        self.taken += 1
        wait_until(f"the operator has seen {patch}", self._is_seen)

    def put(self, spec: dict[str, Any]) -> None:
        """The whole spec as it was."""
        patch: Any = [{"op": "replace", "path": "/spec", "value": spec}]
        self._world.api.request("PATCH", self._path, patch, "application/json-patch+json")
        wait_until("the operator has seen it", self._is_seen)

    def _is_seen(self) -> bool:
        assert self._operator.process is not None
        assert self._operator.process.poll() is None, self._operator.log[-3000:]
        body = self._world.read(self._path)
        return bool(body.get("status", {}).get("observedGeneration") == body["metadata"]["generation"])


def view(world: World, path: str) -> dict[str, Any]:
    """Where a job stands, without times and names. What an earlier run did stays told where the last spec begins none."""
    status = (world.get(path) or {}).get("status", {})
    conditions = sorted((c["type"], c["status"], c["reason"]) for c in status.get("conditions", []))
    if any(kind == "Stalled" for kind, _, _ in conditions):
        return {"conditions": [c for c in conditions if c[0] in ("Ready", "Stalled")]}
    steps = sorted((s["name"], s["state"]) for s in status.get("steps", []))
    return {"conditions": conditions, "stage": status.get("stage"), "steps": steps}


@pytest.mark.parametrize("seed", range(3))
def test_a_walk_of_edits_ends_where_a_fresh_job_ends(world: World, operators: Callable[..., Operator], seed: int) -> None:
    dice, known = random.Random(seed), list(fields(schema_of(FineTuneJobSpec, defaults=True)))
    spaces = [world.namespace(f"{word}-{seed}") for word in ("walked", "fresh")]
    operator = operators(*PROGRAM, FINETUNE_LEADER_ELECTION="false").start()
    walk = Walk(world, apply_facts(world, spaces[0]), operator)
    with FakeNode(world.api, spaces[0], trainer(world, spaces[0])), FakeNode(world.api, spaces[1], trainer(world, spaces[1])):
        for number in range(1, EDITS + 1):
            if number % 5 == 0:
                before = walk.spec
                walk.edit(dice.choice(BROKEN))
                walk.put(before)
            else:
                walk.edit(dice.choice(PEOPLES) if dice.random() < 0.4 else patch_of(dice.choice(known), dice))
        assert walk.taken > EDITS / 3, "hardly any edit was taken: this walk has lost its point"
        walk.edit({"suspend": False})
        walked, fresh = (f"{FINETUNE}/namespaces/{space}/finetunejobs/facts" for space in spaces)
        apply_rows(world, spaces[1])
        body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "facts"}, "spec": walk.spec}
        world.api.apply(fresh, body)
        within(SAME_SECONDS, lambda: view(world, walked) == view(world, fresh) and view(world, fresh)["conditions"])
        quiet(operator)
    print(f"{walk.taken} edits, and where they end: {view(world, fresh)}")
    assert view(world, walked) == view(world, fresh), walk.spec
    ours = [r for r in operator.proxy.requests if any(f"/namespaces/{space}/" in r.path for space in spaces)]
    assert [f"{r.method} {r.path}" for r in ours if r.code in (400, 403, 422)] == []
    assert operator.refusals() == []
