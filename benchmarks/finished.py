"""FineTuneJobs that have long succeeded, as a backup restores them: the object, its status, and the ConfigMap of its run."""

from __future__ import annotations

import asyncio
import json

from simulated import Object, a_session, at_once, post
from tests.builders import make_job
from tests.integration.conftest import FINETUNE, World
from tests.story import Story

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.finetunejob.objects import run_config_map
from finetune_operator.finetunejob.runs import current_run
from finetune_operator.finetunejob.status import rendered

SPACE = "scale-finished"


def restore(world: World, count: int, spec: Object) -> None:
    """Create them in a namespace of their own."""
    world.namespace(SPACE)
    asyncio.run(_restore(world, count, _succeeded(spec)))


def _succeeded(spec: Object) -> Object:
    story = Story(make_job("restored") | {"spec": spec})
    while not any(c["type"] == "Succeeded" for c in story.job["status"].get("conditions", ())):
        story.passes()
        if story.space.at_work():
            story.succeed()
    return story.job


async def _restore(world: World, count: int, pattern: Object) -> None:
    path, old = f"{FINETUNE}/namespaces/{SPACE}/finetunejobs", pattern["metadata"]["name"]
    old_id = current_run(FineTuneJob.model_validate(pattern))[0].id

    async def one(number: int) -> None:
        meta = {"name": f"done-{number}", "namespace": SPACE}
        made = await post(session, path, {**{k: pattern[k] for k in ("apiVersion", "kind", "spec")}, "metadata": meta})
        run_id = current_run(FineTuneJob.model_validate({**made, "status": pattern["status"]}))[0].id
        text = json.dumps(pattern["status"]).replace(old_id, run_id).replace(old, meta["name"])
        job = FineTuneJob.model_validate({**made, "status": json.loads(text)})
        run, status = current_run(job)
        await post(session, f"/api/v1/namespaces/{SPACE}/configmaps", run_config_map(job, run))
        async with session.put(f"{path}/{meta['name']}/status", json={**made, "status": rendered(status)}) as response:
            response.raise_for_status()

    async with a_session(world) as session:
        await at_once(count, one)
