"""What happens to the operator itself and to the cluster under it: no training is lost, and no tenant feels another."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from demo.installation import RELEASE, ROOT, SYSTEM, Installation, install_locally
from demo.kubectl import KubectlFailed, Object
from localcluster import cluster, images, processes, settings, toolchain
from tests.e2e import jobs
from tests.e2e.space import JOB, OPERATOR, Space, step
from tests.e2e.test_lifecycle import begun, long_job
from tests.integration.test_hostile_tenant import deep_job
from tests.waiting import wait_until


def helm(installation: Installation, *arguments: str) -> None:
    program = str(toolchain.binary(settings.read().cache, "helm"))
    subprocess.run([program, *arguments], env=installation.kubectl.environment, check=True, capture_output=True)


def watch(space: Space, only: str) -> None:
    """Have the operator that is there watch one namespace alone."""
    space.kubectl("set", "env", f"deployment/{RELEASE}", "-n", SYSTEM, f"FINETUNE_NAMESPACE={only}")
    space.kubectl("rollout", "status", f"deployment/{RELEASE}", "-n", SYSTEM, "--timeout=180s")


@pytest.fixture
def reinstalled(installation: Installation) -> Iterator[Installation]:
    """The installation, which is made as it was after the test."""
    yield installation
    install_locally()


def lease(space: Space) -> Object:
    found = space.kubectl.get("lease", RELEASE, SYSTEM)
    assert found is not None
    spec: Object = found["spec"]
    return spec


def held_by_another(space: Space, leader: str) -> Object | None:
    """The lease, once another replica has it: for a moment it may be nobody's."""
    found = lease(space)
    return found if found.get("holderIdentity") not in ("", None, leader) else None


def scale(space: Space, replicas: int) -> None:
    space.kubectl("scale", f"deployment/{RELEASE}", "-n", SYSTEM, f"--replicas={replicas}")
    space.kubectl("rollout", "status", f"deployment/{RELEASE}", "-n", SYSTEM, "--timeout=180s")


def test_leader_takeover(space: Space) -> None:
    """The leader is killed without a word: within 20 s another acts, and training does not notice."""
    scale(space, 2)
    try:
        space.apply(long_job("watched"))
        begun(space, "watched")
        leader = lease(space)["holderIdentity"]
        space.kubectl("delete", "pod", leader, "-n", SYSTEM, "--grace-period=0", "--force", "--wait=false")
        last = datetime.fromisoformat(lease(space)["renewTime"])
        taken = wait_until("another replica leads", lambda: held_by_another(space, leader), 60)
        assert taken is not None
        gap = (datetime.fromisoformat(taken["acquireTime"]) - last).total_seconds()
        print(f"the leader was away for {gap:.1f} s")
        assert gap < 20
        assert {s["attempt"] for s in space.succeeded("watched")["status"]["steps"]} == {1}
    finally:
        scale(space, 1)


def test_api_restart(space: Space) -> None:
    """The API server is away for a moment, while a model is trained."""
    space.apply(long_job("steady"))
    begun(space, "steady")
    chosen = settings.read()
    processes.stop(chosen.directory, "kube-apiserver")
    cluster.up(chosen)
    job = space.succeeded("steady")
    assert {s["attempt"] for s in job["status"]["steps"]} == {1}


@contextmanager
def paused(name: str) -> Iterator[None]:
    """A part of the local cluster that does nothing while the block runs, as on a node that lost its network."""
    pid = processes.pid_of(settings.read().directory, name)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_node_lost(space: Space) -> None:
    """A pod that is to go from a node that does not answer is given up, without a person and without a spent retry."""
    space.apply(long_job("stranded"))
    begun(space, "stranded")
    with paused("kubelet"):
        pods = ("-l", "finetune.dev/job=stranded,finetune.dev/step=train", "--grace-period=5", "--wait=false")
        space.kubectl("delete", "pod", "-n", space.name, *pods)  # what Kubernetes does after five minutes
        given_up = lambda job: job["status"].get("lastFailure", {}).get("reason") == "NodeLost"  # noqa: E731
        space.until(JOB, "stranded", "gives the pod up", given_up, 240)
    train = step(space.succeeded("stranded"), "train")
    assert (train["attempt"], train["retries"]) == (2, 0)


def test_hostile_tenant(space: Space, make_space: Callable[[str], Space], tmp_path: Path) -> None:
    """A spec and a log without end stall what they belong to; the next tenant's job ends as ever."""
    mallory = make_space("e2e-mallory")
    restarts = space.operator_restarts()
    (tmp_path / "deep.json").write_text(deep_job("deep"))
    space.kubectl("create", "-n", mallory.name, "--validate=false", "-f", str(tmp_path / "deep.json"))
    space.apply(jobs.job("honest"))
    space.succeeded("honest")
    mallory.kubectl("wait", JOB, "deep", "-n", mallory.name, "--for=condition=Stalled", "--timeout=60s")
    why = '{.status.conditions[?(@.type=="Stalled")].message}'  # Python's json can't read the object either
    told = mallory.kubectl("get", JOB, "deep", "-n", mallory.name, "-o", f"jsonpath={why}")
    assert told == "spec.serving.template has more than 64 levels of nesting; make it flatter"
    assert space.operator_restarts() == restarts


def test_two_releases(space: Space, make_space: Callable[[str], Space], reinstalled: Installation) -> None:
    """Two releases in one namespace, each for a namespace of its own: both act, and one that goes takes nothing along."""
    other = make_space("e2e-second-release")
    watch(space, space.name)
    chosen, chart = settings.read(), str(ROOT / "charts/finetune-operator")
    values = ("--values", str(images.values_file(chosen)), "--set", f"hubEndpoint={chosen.hub_url},watchNamespace={other.name}")
    helm(reinstalled, "install", "second", chart, "-n", SYSTEM, *values, "--wait", "--timeout=180s")
    for one in (space, other):
        one.apply(jobs.job("apart"))
    assert {one.name for one in (space, other) if one.succeeded("apart")} == {space.name, other.name}
    helm(reinstalled, "uninstall", "second", "-n", SYSTEM, "--wait")
    space.apply(jobs.job("later"))
    space.succeeded("later")
    assert other.get(JOB, "apart") is not None


def says(space: Space, text: str) -> bool:
    try:
        return text in space.operator_log()
    except KubectlFailed:  # its container has not started yet
        return False


@pytest.mark.usefixtures("reinstalled")
def test_crds_last(space: Space) -> None:
    """An operator that was there before its CRDs says which are missing, and acts as soon as they are there."""
    space.kubectl("scale", f"deployment/{RELEASE}", "-n", SYSTEM, "--replicas=0")
    space.kubectl("delete", "-f", str(ROOT / "crds"), "--wait", "--timeout=120s")
    space.kubectl("scale", f"deployment/{RELEASE}", "-n", SYSTEM, "--replicas=1")
    told = "the cluster has no CRD finetunejobs.finetune.dev, modelserves.finetune.dev: apply crds/"
    wait_until("it says what is missing", lambda: says(space, told), 120)
    (pod,) = [p for p in space.kubectl.items("pod", SYSTEM, OPERATOR) if "deletionTimestamp" not in p["metadata"]]
    assert not any(c["ready"] for c in pod["status"]["containerStatuses"])
    space.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    space.kubectl("wait", "--for=condition=Ready", f"pod/{pod['metadata']['name']}", "-n", SYSTEM, "--timeout=30s")
    space.apply(jobs.job("early"))
    space.succeeded("early")
