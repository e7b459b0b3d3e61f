"""FineTuneJobs that have long succeeded, as a backup restores them: the object, its status, and the ConfigMap of its run."""

from __future__ import annotations

import asyncio

from simulated import Object, a_session, at_once, post
from tests.integration.conftest import FINETUNE, World
from tests.story import as_restored, succeeded

SPACE = "scale-finished"


def restore(world: World, count: int, spec: Object) -> None:
    """Create them in a namespace of their own."""
    world.namespace(SPACE)
    asyncio.run(_restore(world, count, succeeded(spec)))


async def _restore(world: World, count: int, pattern: Object) -> None:
    path = f"{FINETUNE}/namespaces/{SPACE}/finetunejobs"

    async def one(number: int) -> None:
        meta = {"name": f"done-{number}", "namespace": SPACE}
        made = await post(session, path, {**{k: pattern[k] for k in ("apiVersion", "kind", "spec")}, "metadata": meta})
        status, config_map = as_restored(pattern, made)
        await post(session, f"/api/v1/namespaces/{SPACE}/configmaps", config_map)
        async with session.put(f"{path}/{meta['name']}/status", json={**made, "status": status}) as response:
            response.raise_for_status()

    async with a_session(world) as session:
        await at_once(count, one)
