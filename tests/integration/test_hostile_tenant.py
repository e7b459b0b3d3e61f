"""What one tenant writes stops nothing of another's: objects and logs too deep to be read, on a real API server."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.integration.conftest import Operator, World
from tests.integration.fake_node import FakeNode
from tests.integration.test_operator import TINY, Operators, apply_job, condition, jobs, succeed
from tests.waiting import wait_until

DEEP = '{"a":' * 1500 + "1" + "}" * 1500


def deep_job(name: str) -> str:
    """JSON of a FineTuneJob whose serving.template is nested 1,500 deep, which json.dumps could not write."""
    spec = f'{{"model": {{"uri": "hf://a/b"}}, "dataset": {{"uri": "hf://c/d"}}, "serving": {{"template": {DEEP}}}}}'
    meta = f'"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {{"name": "{name}"}}'
    return f'{{{meta}, "spec": {spec}}}'


def create_deep_job(world: World, directory: Path, namespace: str, name: str) -> str:
    """Create such a job; returns its path."""
    file = directory / f"{name}.json"
    file.write_text(deep_job(name))
    world.kubectl("create", "-n", namespace, "--validate=false", "-f", str(file))
    return f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs/{name}"


def lives(operator: Operator) -> bool:
    assert operator.process is not None
    return operator.process.poll() is None and '"died"' not in operator.log


def test_a_spec_nested_without_end_stalls_that_job_alone(world: World, operators: Operators, tmp_path: Path) -> None:
    space = world.namespace("hostile-spec")
    create_deep_job(world, tmp_path, space, "before")
    operator = operators(TINY, FINETUNE_NAMESPACE=space, FINETUNE_RESYNC_SECONDS="15").start()
    wait_until("it leads", lambda: '"leading"' in operator.log)
    create_deep_job(world, tmp_path, space, "while-it-runs")
    good = apply_job(world, space)
    with FakeNode(world.api, space, succeed):
        wait_until("another job is done", lambda: condition(world, good, "Ready") == "True")

    def told(name: str) -> bool:
        text = world.kubectl(
            "get", "ftj", name, "-n", space, "-o", "jsonpath={.status.conditions[?(@.type=='Stalled')].message}"
        )
        return text == "spec.serving.template has more than 64 levels of nesting; make it flatter"

    for name in ("before", "while-it-runs"):
        wait_until(f"{name} says what is wrong", partial(told, name))
    apply_job(world, space, "later")
    wait_until("a later job has its Job", lambda: len(jobs(world, space)) == 2)

    def lists() -> int:
        return sum("watch" not in r.query and r.path.endswith("/finetunejobs") for r in operator.proxy.requests)

    wait_until("a resync has listed them all", lambda: lists() > 1)
    assert lives(operator)
    assert operator.refusals() == []


def test_a_log_line_nested_without_end_is_passed_over(world: World, operators: Operators) -> None:
    space = world.namespace("hostile-log")
    labels = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job": "none", "finetune.dev/step": "train"}
    restricted = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "main", "image": "none", "securityContext": restricted}
    note = {"batch.kubernetes.io/job-completion-index": "no number"}
    meta = {"name": "deep", "labels": labels | {"finetune.dev/attempt": "x"}, "annotations": note}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container]}}
    world.api.request("POST", f"/api/v1/namespaces/{space}/pods", pod)
    operator = operators(TINY, FINETUNE_NAMESPACE=space, FINETUNE_PROGRESS_SECONDS="0.2")
    operator.proxy.logs["deep"] = f'{{"kind": "progress", "a": {DEEP}}}\n'
    operator.start()
    with FakeNode(world.api, space, lambda pod: None if pod["metadata"]["name"] == "deep" else succeed(pod)):

        def reads() -> int:
            return sum(r.path.endswith("/deep/log") for r in operator.proxy.requests)

        wait_until("the log was read a few times", lambda: reads() > 3)
        good = apply_job(world, space)
        wait_until("another job is done", lambda: condition(world, good, "Ready") == "True")
    assert lives(operator)
