"""All that is created for a ModelServe until it serves, and its status then, as files to be read in review.

tests/golden/modelserve/<case>/modelserve.yaml ─► objects.yaml, status.yaml      (pytest --golden-update writes them)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.serving import Stage, make_serve

from finetune_operator.meta import Object

CASES = sorted(p.parent for p in (Path(__file__).parents[2] / "golden" / "modelserve").glob("*/modelserve.yaml"))
KINDS = (
    "Deployment", "Service", "ConfigMap", "Job",
    "ControllerRevision", "NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget", "HTTPRoute",
)  # fmt: skip
SECRETS = ("s3-keys", "authority")


def test_cases_were_found() -> None:
    assert len(CASES) >= 3


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.name)
def test_until_it_serves(case: Path, golden: Callable[[Path, str], None]) -> None:
    given = yaml.safe_load((case / "modelserve.yaml").read_text())
    serve = make_serve()
    serve["spec"] = given["spec"]
    stage = Stage(serve)
    for secret in SECRETS:
        stage.put({"kind": "Secret", "metadata": {"name": secret}})
    stage.roll_out()
    golden(case / "objects.yaml", _yaml(_as_sent(o) for kind in KINDS for o in stage.of(kind)))
    golden(case / "status.yaml", _yaml([stage.serve["status"]]))


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.name)
def test_every_pod_meets_pod_security_restricted(case: Path) -> None:
    serve = make_serve()
    serve["spec"] = yaml.safe_load((case / "modelserve.yaml").read_text())["spec"]
    stage = Stage(serve)
    for secret in SECRETS:
        stage.put({"kind": "Secret", "metadata": {"name": secret}})
    stage.roll_out()
    pods = [o["spec"]["template"]["spec"] for kind in ("Deployment", "Job") for o in stage.of(kind)]
    assert len(pods) == 2
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def _as_sent(body: Object) -> Object:
    """The object without what the API server and the other controllers added, and a record without its Deployment, which
    stands there by itself.
    """
    added = ("uid", "generation", "creationTimestamp")
    left_out = {"status", "data"} if body["kind"] == "ControllerRevision" else {"status"}
    sent = {k: v for k, v in body.items() if k not in left_out}
    return {**sent, "metadata": {k: v for k, v in body["metadata"].items() if k not in added}}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(objects: Iterable[Object]) -> str:
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=160)
