"""`kubectl finetune` against a real API server: what it may ask, watch and write there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
from tests.builders import make_job
from tests.integration.conftest import FINETUNE, ROOT, World
from tests.serving import Stage
from tests.waiting import wait_until

TEAM = "cli"


@pytest.fixture(scope="module")
def team(world: World) -> str:
    return world.namespace(TEAM)


def environment(world: World) -> dict[str, str]:
    paths = f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}"
    return {**os.environ, "KUBECONFIG": str(world.plane.kubeconfig), "PYTHONPATH": paths, "COLUMNS": "200"}


def start(world: World, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "finetune_operator.cli", *arguments, "-n", TEAM]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(world), stdout=pipe, stderr=pipe, text=True)


def call(world: World, *arguments: str) -> tuple[int, str]:
    process = start(world, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, " ".join((out + err).replace("│", " ").split())


def put(world: World, body: dict[str, Any], plural: str) -> dict[str, Any]:
    """Create it with its status, as an operator would have left it."""
    name = body["metadata"]["name"]
    body = {**body, "metadata": {"name": name, "namespace": TEAM}}
    path = f"{FINETUNE}/namespaces/{TEAM}/{plural}"
    made = world.api.request("POST", path, body)
    if "status" in body:
        return with_status(world, {**made, "status": body["status"]}, plural)
    return made


def with_status(world: World, body: dict[str, Any], plural: str) -> dict[str, Any]:
    path = f"{FINETUNE}/namespaces/{TEAM}/{plural}/{body['metadata']['name']}/status"
    return dict(world.api.request("PUT", path, body))


def _gone(world: World, path: str) -> bool:
    return world.get(path) is None


def ended(body: dict[str, Any]) -> dict[str, Any]:
    condition = {"status": "True", "message": "1 of 1 gates passed", "lastTransitionTime": "2026-11-23T15:00:00Z"}
    told = [{"type": kind, "reason": "Succeeded", "observedGeneration": 1, **condition} for kind in ("Ready", "Succeeded")]
    return {**body, "status": {"observedGeneration": 1, "stage": "Succeeded", "conditions": told}}


def test_status_watch_and_cancel_of_a_job(world: World, team: str) -> None:
    job = put(world, {k: v for k, v in make_job("first").items() if k != "status"}, "finetunejobs")
    assert call(world, "status", "first")[1].startswith(f"FineTuneJob {team}/first: the operator has not seen it")
    assert "no pod has started yet" in call(world, "logs", "first")[1]
    assert call(world, "cancel", "first")[0] == 0
    path = f"{FINETUNE}/namespaces/{team}/finetunejobs/first"
    suspended = world.read(path)
    assert suspended["spec"]["suspend"] is True
    assert {m["manager"] for m in suspended["metadata"]["managedFields"]} >= {"kubectl-finetune"}
    watching = start(world, "watch", "first")
    assert watching.stdout is not None
    assert "the operator has not seen it" in watching.stdout.readline()
    job = world.read(path)
    done = ended(job)
    for condition in done["status"]["conditions"]:
        condition["observedGeneration"] = job["metadata"]["generation"]
    with_status(world, done, "finetunejobs")
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert "1 of 1 gates passed" in out
    assert "first" in call(world, "status")[1]
    assert call(world, "cancel", "first", "--delete")[0] == 0
    wait_until("the job is gone", lambda: world.get(path) is None)


def test_promote_and_rollback_write_what_the_operator_reads(world: World, team: str) -> None:
    stage = Stage()
    old, new = stage.promote_another()
    put(world, {**stage.serve, "status": json.loads(json.dumps(stage.serve["status"]))}, "modelserves")
    code, output = call(world, "rollback", "facts")
    assert (code, output) == (0, f"ModelServe facts: revision {new} is left for {old}, until the spec asks for another")
    path = f"{FINETUNE}/namespaces/{team}/modelserves/facts"
    assert world.read(path)["metadata"]["annotations"] == {"finetune.dev/rollback": new}
    assert call(world, "promote", "facts") == (2, "ModelServe facts has no revision that waits; what the spec asks for serves")
    assert old in call(world, "status", "facts")[1]


def test_the_doctor_names_what_a_bare_control_plane_lacks(world: World, team: str) -> None:
    code, output = call(world, "doctor")
    assert code == 1
    assert "both kinds are known" in output
    assert f"all that the commands need in {team}" in output
    for fault in ("no operator is installed", "no node is ready", "there is no storage class"):
        assert fault in output
    assert "no ServiceMonitor is known here" in output


def test_the_doctor_asks_for_the_operators_rights(world: World, team: str) -> None:
    """The account of the chart may act in every namespace; another may not."""
    labels = {"app.kubernetes.io/name": "finetune-operator"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "operator", "image": "x"}]}}
    accounts = {"finetune-system": "finetune-operator", team: "default"}
    said = []
    for namespace, account in accounts.items():
        pod["spec"]["serviceAccountName"] = account  # type: ignore[index]
        spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": pod}
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "doctored", "labels": labels}, "spec": spec}
        place = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        world.api.request("POST", place, body)
        said.append(call(world, "doctor")[1])
        world.api.request("DELETE", f"{place}/doctored")
        wait_until("it is gone", partial(_gone, world, f"{place}/doctored"))
    assert [f"{namespace}/doctored has no ready replica" in text for namespace, text in zip(accounts, said, strict=True)] == [
        True,
        True,
    ]
    assert ["the operator's service account may not update finetunejobs/status" in text for text in said] == [False, True]
