"""The operator goes from version to version, and away, while it serves and trains: nobody who asks or trains feels it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from demo.installation import ROOT, SYSTEM, Installation, install_locally
from demo.kubectl import Object
from tests.e2e import jobs, releases, serves
from tests.e2e.releases import Helm, Version
from tests.e2e.space import JOB, OPERATOR, SERVE, Space
from tests.e2e.test_lifecycle import LONG, begun
from tests.e2e.test_operator import says
from tests.waiting import wait_until

BEFORE = "274d24f"  # before the chart had a page of values, install.yaml and canaries: 2026-11-29


@pytest.fixture
def helm(installation: Installation) -> Iterator[Helm]:
    """Helm in the place of install.yaml, which is applied again after the test."""
    releases.take_away(installation)
    made = Helm(installation)
    try:
        yield made
    finally:
        for release in (releases.RELEASE, f"{releases.RELEASE}-crds"):
            installation.kubectl("delete", "secret", "-n", SYSTEM, "-l", f"owner=helm,name={release}", "--ignore-not-found")
        install_locally()


def at_work(space: Space) -> dict[str, tuple[str, int]]:
    """Each pod of ours that is at work: its uid, and how often its containers were started anew."""
    return {
        pod["metadata"]["name"]: (
            pod["metadata"]["uid"],
            sum(c["restartCount"] for c in pod["status"].get("containerStatuses", [])),
        )
        for pod in space.items("pod", "app.kubernetes.io/managed-by=finetune-operator")
        if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
    }


def serving(space: Space, name: str) -> dict[str, tuple[str, int]]:
    return {pod: told for pod, told in at_work(space).items() if pod.startswith(name)}


def runs(space: Space, version: Version) -> bool:
    """Whether this version's operator is the only one, and leads."""
    pods = [p for p in space.kubectl.items("pod", SYSTEM, OPERATOR) if "deletionTimestamp" not in p["metadata"]]
    ours = [p for p in pods if p["spec"]["containers"][0]["image"] == version.operator_image]
    return len(ours) == len(pods) == 1 and says(space, '"leading"')


def looked(space: Space, what: str) -> None:
    """Wait until the operator has looked at everything: at an object that came after all that it listed at its start."""
    name = f"seen-after-{what}"
    space.apply(jobs.job(name, suspend=True))
    space.until(JOB, name, "is seen", lambda job: job.get("status", {}).get("observedGeneration"))
    space.delete(JOB, name, "--wait=false")


def stays(space: Space, before: dict[str, tuple[str, int]], revision: str) -> None:
    """Nothing that serves or trains was started anew."""
    found = space.get(SERVE, "steady")
    assert found is not None
    assert found["status"]["live"]["name"] == revision
    now = at_work(space)
    assert {pod: told for pod, told in before.items() if pod.startswith("steady")} == serving(space, "steady")
    assert {pod: told for pod, told in now.items() if "-train-" in pod}.items() <= before.items()


@pytest.mark.space(serves.SHARED)
def test_upgrade_rollback_uninstall(space: Space, small_job: Object, helm: Helm, tmp_path: Path) -> None:
    """From an earlier version to this one, back, and away: no pod is started anew, no request is lost, training goes on."""
    assert small_job
    old = releases.earlier(BEFORE, tmp_path)
    new = Version(ROOT, helm.installation.operator_image)
    helm.to(old)
    with serves.live(space, "steady") as revision, serves.traffic(space, "steady") as report:
        space.apply(jobs.job("enduring", training=LONG | {"maxSteps": 160}, retry={"maxRetries": 0}))
        begun(space, "enduring")
        before = at_work(space)
        assert any("-train-" in pod for pod in before)
        for what, version, move in (("upgrade", new, partial(helm.to, new)), ("rollback", old, helm.back)):
            move()
            wait_until(f"the operator leads after the {what}", partial(runs, space, version), 240)
            looked(space, what)
            stays(space, before, revision)
        helm("uninstall", releases.RELEASE, "--wait")
        assert space.get(SERVE, "steady") is not None
        assert space.get(JOB, "enduring") is not None
        stays(space, before, revision)
        install_locally()
        done = space.succeeded("enduring")
        assert {s["attempt"] for s in done["status"]["steps"] if "attempt" in s} == {1}
        stays(space, before, revision)
    serves.nothing_lost(report, 1)
