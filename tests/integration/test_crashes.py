"""The real policy against a real API server: a whole pipeline, and the same with the operator killed at every write."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any

from tests.builders import make_result
from tests.integration.conftest import FINETUNE, Operator, World
from tests.integration.fake_node import Ending, FakeNode, Pod
from tests.integration.test_operator import quiet
from tests.waiting import wait_until

from finetune_trainer.contract.reports import Termination
from finetune_trainer.contract.run import RunConfig

PROGRAM = ("-m", "finetune_operator")
STEPS = ["evaluate", "evaluate-q4", "merge", "prepare", "quantize-q4", "train"]
VOLATILE = {
    "activeSince",
    "startedAt",
    "finishedAt",
    "updatedAt",
    "lastTransitionTime",
    "jobUid",
    "uid",
    "gpuSeconds",
    "counted",
    "holding",
    "time",
    "message",
    "runDigest",
    "progress",  # what a pass happened to see of a pod that ran for a moment
}


def apply_rows(world: World, namespace: str) -> None:
    """The dataset of apply_facts."""
    data = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "facts"},
        "data": {"train.jsonl": "{}", "test.jsonl": "{}"},
    }
    world.api.apply(f"/api/v1/namespaces/{namespace}/configmaps/facts", data)


def apply_facts(world: World, namespace: str) -> str:
    """A FineTuneJob with its dataset; returns its path."""
    apply_rows(world, namespace)
    path = f"{FINETUNE}/namespaces/{namespace}/finetunejobs/facts"
    spec = {
        "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
        "dataset": {"uri": "configmap://facts/train.jsonl", "test": {"uri": "configmap://facts/test.jsonl"}},
        "parallelism": {"gpusPerNode": 0},
        "artifacts": [{"name": "q4", "format": "GGUF", "quantization": "Q4_K_M"}],
    }
    body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "facts"}, "spec": spec}
    world.api.apply(path, body)
    return path


def trainer(world: World, namespace: str) -> Callable[[Pod], Ending | None]:
    """What the trainer's pods report, by the run that they mount: every step succeeds. A pod whose run is gone runs on."""

    def ending(pod: Pod) -> Ending | None:
        maps = [v["configMap"]["name"] for v in pod["spec"]["volumes"] if "configMap" in v]
        found = [world.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}") for name in maps]
        text = next((m["data"]["run.json"] for m in found if m and "run.json" in m["data"]), None)
        if text is None:
            return None
        result = make_result(RunConfig.model_validate_json(text), pod["metadata"]["labels"]["finetune.dev/step"])
        return 0, Termination(result=result).model_dump_json(by_alias=True, exclude_none=True)

    return ending


def ended(world: World, namespace: str) -> list[str]:
    """How it ended: the status and the names of all children, without what the namespace's own name makes different."""
    status = (world.get(f"{FINETUNE}/namespaces/{namespace}/finetunejobs/facts") or {})["status"]
    run = status["run"].rpartition("-")[2]
    text = json.dumps([stable(status), children(world, namespace)], indent=1, sort_keys=True)
    return text.replace(run, "RUN").splitlines()


def stable(value: Any) -> Any:
    """The object without what differs between two good runs: times and uids."""
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if k not in VOLATILE}
    return [stable(v) for v in value] if isinstance(value, list) else value


def children(world: World, namespace: str) -> dict[str, list[str]]:
    """Names of everything that the operator made."""
    kinds = {
        "jobs": "/apis/batch/v1",
        "configmaps": "/api/v1",
        "persistentvolumeclaims": "/api/v1",
    }
    return {
        kind: sorted(
            o["metadata"]["name"]
            for o in world.items(f"{root}/namespaces/{namespace}/{kind}")
            if o["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by") == "finetune-operator"
        )
        for kind, root in kinds.items()
    }


def succeeded(world: World, path: str) -> bool:
    conditions = (world.get(path) or {}).get("status", {}).get("conditions", [])
    return any(c["type"] == "Succeeded" and c["status"] == "True" for c in conditions)


def created_jobs(operator: Operator) -> int:
    return sum(r.method == "POST" and r.path.endswith("/jobs") for r in operator.proxy.writes())


def test_a_pipeline_ends_the_same_when_the_operator_is_killed_at_every_write(
    world: World, operators: Callable[..., Operator]
) -> None:
    calm = world.namespace("calm")
    path = apply_facts(world, calm)
    reference = operators(*PROGRAM, FINETUNE_NAMESPACE=calm).start()
    with FakeNode(world.api, calm, trainer(world, calm)):
        wait_until("the pipeline has succeeded", lambda: succeeded(world, path), 60)
    writes = quiet(reference)
    assert created_jobs(reference) == len(STEPS)
    assert reference.refusals() == []
    assert reference.stop() == 0
    reference.start()
    wait_until("a fresh operator acts", lambda: reference.log.count('"leading"') == 2)
    assert quiet(reference) == writes, "a second pass over a finished job must write nothing"
    reference.stop()

    stormy = world.namespace("stormy")
    path = apply_facts(world, stormy)
    operator = operators(*PROGRAM, FINETUNE_NAMESPACE=stormy)
    kills = 0
    operator.proxy.kill_after = 1
    with FakeNode(world.api, stormy, trainer(world, stormy)):
        operator.start()

        def done() -> bool:
            nonlocal kills
            assert operator.process is not None
            if operator.process.poll() is not None:
                kills += 1
                operator.proxy.kill_after = len(operator.proxy.writes()) + 1
                operator.start()
            return succeeded(world, path)

        wait_until("the pipeline has succeeded", done, 600)  # a program's start takes seconds, and there are dozens
    quiet(operator)
    assert kills >= writes / 2, "hardly any write was the last of its process: this test has lost its point"
    assert created_jobs(operator) == len(STEPS), "a Job was created twice"
    different = difflib.unified_diff(ended(world, calm), ended(world, stormy), "calm", "stormy", n=2, lineterm="")
    assert (text := "\n".join(different)) == "", text
    steps = sorted(s["name"] for s in world.read(path)["status"]["steps"] if s["attempt"] == 1)
    assert steps == STEPS, "each step took one attempt"
