"""Retention on a real API server: the small Job that removes what earlier runs made is told what ModelServes name."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.integration.conftest import FINETUNE, Operator, World
from tests.integration.fake_node import FakeNode
from tests.integration.test_crashes import PROGRAM, apply_facts, succeeded, trainer
from tests.integration.test_operator import quiet
from tests.waiting import wait_until

from finetune_trainer.contract.pod import ENV_IN_USE

USED = "0123456789abcdef0123"


def test_a_job_that_removes_is_told_what_is_served(world: World, operators: Callable[..., Operator]) -> None:
    space = world.namespace("retention")
    path = apply_facts(world, space)
    served = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelServe",
        "metadata": {"name": "bot"},
        "spec": {
            "engine": {"type": "LlamaCpp"},
            "model": {"uri": f"pvc://facts-artifacts/facts/quantize/{USED}/1-a"},
            "suspend": True,
        },
    }
    world.api.apply(f"{FINETUNE}/namespaces/{space}/modelserves/bot", served)
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=space).start()
    with FakeNode(world.api, space, trainer(world, space)):
        wait_until("the pipeline has succeeded", lambda: succeeded(world, path), 60)
        before = world.read(path)["status"]
        world.kubectl(
            *("patch", "finetunejob", "facts", "-n", space, "--type=merge"),
            *("-p", json.dumps({"spec": {"storage": {"artifacts": {"keepRuns": 1}}}})),
        )
        wait_until("another run has removed something", lambda: world.read(path)["status"].get("cleaned"), 60)
        wait_until("it has succeeded", lambda: succeeded(world, path), 60)
        quiet(operator)
    status = world.read(path)["status"]
    (job,) = world.items(f"/apis/batch/v1/namespaces/{space}/jobs?labelSelector=finetune.dev%2Fstep%3Dclean")
    told = {v["name"]: v.get("value") for v in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert told[ENV_IN_USE] == USED
    assert status["cleaned"]["entries"] == 4
    assert status["runNumber"] == before["runNumber"] + 1
    assert operator.refusals() == []
