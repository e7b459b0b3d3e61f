"""What keeps objects in Git, at a real API server with the operator at work: applied again nothing changes, nothing differs,
and Flux's and kubectl's own programs say of each situation what the contract says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from localcluster import settings, toolchain
from tests.integration.conftest import FINETUNE, Operator, World
from tests.integration.test_crashes import apply_rows
from tests.integration.test_modelserve import ServingNode, apply_serve
from tests.integration.test_operator import quiet
from tests.unit.finetunejob import test_status as jobs
from tests.unit.modelserve import test_contract as serves

OFTEN = 100
WAYS = {"client-side": (), "server-side": ("--server-side",)}
JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: facts}
spec:
  model: {uri: hf://HuggingFaceTB/SmolLM2-135M-Instruct}
  dataset:
    uri: configmap://facts/train.jsonl
    test: {uri: configmap://facts/test.jsonl}
  parallelism: {gpusPerNode: 0}
  suspend: true
"""
SERVE = """\
apiVersion: finetune.dev/v1alpha1
kind: ModelServe
metadata: {name: facts}
spec:
  model: {uri: pvc://models/one}
  engine: {type: LlamaCpp}
  parallelism: {gpus: false}
"""


def kstatus(objects: list[dict[str, Any]]) -> list[str]:
    """The verdicts of kstatus' own library."""
    program = toolchain.binary(settings.read().cache, "kstatus")
    done = subprocess.run([program], input=json.dumps(objects), check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_kstatus_itself_says_what_the_contract_says() -> None:
    rows = [(row[0]().job, row[3]) for row in jobs.ROWS] + [(row[0]().serve, row[1]) for row in serves.ROWS]
    assert {"Current", "InProgress", "Failed"} == {verdict for _, verdict in rows}
    assert kstatus([body for body, _ in rows]) == [verdict for _, verdict in rows]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_applied_a_hundred_times_is_as_it_was(
    world: World, operators: Callable[..., Operator], tmp_path: Path, way: str
) -> None:
    space = world.namespace(f"git-{way}")
    apply_rows(world, space)
    apply_serve(world, space)  # for its claim; the ModelServe is applied below, as Git has it
    world.kubectl("delete", "-n", space, "modelserve", "facts")
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(f"{JOB}---\n{SERVE}")
    apply = ("apply", "-n", space, *WAYS[way])
    operator = operators("-m", "finetune_operator", FINETUNE_NAMESPACE=space).start()
    with ServingNode(world, space):
        world.kubectl(*apply, "-f", str(manifests))
        world.kubectl("wait", "-n", space, "--for=condition=Reconciling", "ftj/facts", "--timeout=180s")
        world.kubectl("wait", "-n", space, "--for=condition=Ready", "mserve/facts", "--timeout=180s")
        before, written = versions(world, space), quiet(operator)

        told = world.kubectl(*apply, *(["-f", str(manifests)] * OFTEN))
        assert len(told.splitlines()) == 2 * OFTEN
        assert way == "server-side" or {line.rpartition(" ")[2] for line in told.splitlines()} == {"unchanged"}
        assert quiet(operator) == written, "no pass writes"
        assert versions(world, space) == before
        assert world.kubectl("diff", "-n", space, *WAYS[way], "-f", str(manifests)) == "", (
            "it exits with 1 where something differs"
        )
    objects = [world.read(f"{FINETUNE}/namespaces/{space}/{kind}/facts") for kind in ("finetunejobs", "modelserves")]
    assert kstatus(objects) == ["InProgress", "Current"], "one is suspended, the other serves"
    assert operator.refusals() == []


def versions(world: World, space: str) -> dict[str, str]:
    """The version of each object of ours, and of all that the operator has made of them."""
    kinds = "ftj,mserve,jobs,deployments,services,configmaps,networkpolicies,controllerrevisions"
    found = json.loads(world.kubectl("get", kinds, "-n", space, "-o", "json"))["items"]
    assert {"FineTuneJob", "ModelServe", "Deployment", "Service"} <= {body["kind"] for body in found}
    return {f"{body['kind']}/{body['metadata']['name']}": body["metadata"]["resourceVersion"] for body in found}


@pytest.mark.parametrize("way", WAYS)
def test_definitions_and_examples_are_taken_either_way(world: World, way: str, tmp_path: Path) -> None:
    """Client-side, kubectl keeps all of an object in an annotation, which may hold 256 KiB."""
    space = world.namespace(f"examples-{way}")
    root = Path(__file__).parents[2]
    bodies = [yaml.safe_load(file.read_text()) for file in sorted((root / "crds").glob("*.yaml"))]
    for body in bodies:  # others' definitions stay as they are: the same ones under another group
        body["spec"]["group"] = f"{way}.example.com"
        body["metadata"]["name"] = f"{body['spec']['names']['plural']}.{way}.example.com"
    definitions = tmp_path / "definitions.yaml"
    definitions.write_text(yaml.safe_dump_all(bodies))
    world.kubectl("apply", *WAYS[way], "-f", str(definitions))
    world.kubectl("delete", "-f", str(definitions))
    examples = sorted((root / "examples").glob("*.yaml"))
    told = world.kubectl("apply", "-n", space, "--dry-run=server", *WAYS[way], *(f"--filename={file}" for file in examples))
    assert len(told.splitlines()) >= len(examples)
