"""`kubectl finetune doctor` on a cluster that is well, and on one where everything is broken that can be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from demo.installation import RELEASE, ROOT, SYSTEM, Installation, install_locally
from localcluster.settings import NODE_NAME
from tests.e2e.space import OPERATOR, Space
from tests.waiting import wait_until

from finetune_operator.cli.doctor import DEFAULT_CLASS, HAS_CARD

CLASS = "standard"
ROLE = f"{SYSTEM}-{RELEASE}"


def doctor(space: Space) -> tuple[int, str]:
    """Exit status, and what is said, as on a terminal that is wide enough."""
    path = os.pathsep.join(str(ROOT / folder) for folder in ("operator", "trainer_image"))
    environment = space.kubectl.environment | {"PYTHONPATH": path, "COLUMNS": "240"}
    command = [sys.executable, "-m", "finetune_operator.cli", "doctor", "--namespace", space.name]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def mended(installation: Installation) -> Iterator[None]:
    """Everything that the test breaks is whole again afterwards."""
    yield
    kubectl = installation.kubectl
    kubectl("annotate", "storageclass", CLASS, f"{DEFAULT_CLASS}=true", "--overwrite")
    kubectl("uncordon", NODE_NAME)
    kubectl("label", "node", NODE_NAME, f"{HAS_CARD[0]}-")
    install_locally()


def faults(said: str) -> dict[str, str]:
    """What each fault is about → what is said of it."""
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in said.splitlines() if "│" in line]
    return {row[1]: row[2] for row in cells if row[0] == "fault"}


@pytest.mark.usefixtures("mended")
def test_doctor_names_each_fault(space: Space) -> None:
    code, said = doctor(space)
    assert (code, faults(said)) == (0, {})
    assert "nothing is wrong" in said

    kubectl, here = space.kubectl, ("-n", space.name)
    used = str(len(space.items("configmap")))
    kubectl("annotate", "storageclass", CLASS, f"{DEFAULT_CLASS}=false", "--overwrite")
    kubectl("create", "quota", "tight", f"--hard=configmaps={used}", *here)
    kubectl("label", "node", NODE_NAME, f"{HAS_CARD[0]}=true")
    kubectl("delete", "clusterrolebinding", ROLE)
    kubectl("delete", "crd", "modelserves.finetune.dev", "--wait", "--timeout=120s")
    kubectl("scale", f"deployment/{RELEASE}", "-n", SYSTEM, "--replicas=0")
    wait_until("the operator is gone", lambda: kubectl.items("pod", SYSTEM, OPERATOR) == [])
    wait_until("the quota is counted", lambda: (space.get("resourcequota", "tight") or {})["status"].get("used"))
    code, said = doctor(space)
    assert code == 1
    found = faults(said)
    assert "modelserves.finetune.dev" in found["definitions"]
    assert f"{SYSTEM}/{RELEASE} has no ready replica" in found["operator"]
    assert "the operator's service account may not" in found["operator's rights"]
    assert f"{NODE_NAME}: a GPU is in there, and none is offered to pods" in found["GPUs"]
    assert f"no storage class is the default; there are {CLASS}" in found["storage"]
    assert f"the quota tight leaves no configmaps: {used} of {used} are used" in found["quota"]
    assert set(found) == {"definitions", "operator", "operator's rights", "GPUs", "storage", "quota"}

    kubectl("cordon", NODE_NAME)
    assert "no node is ready" in faults(doctor(space)[1])["nodes"]
