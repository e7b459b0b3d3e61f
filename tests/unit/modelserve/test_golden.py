"""All that is created for a ModelServe until it serves, and its status then, as files to be read in review.

tests/golden/modelserve/<case>/modelserve.yaml ─► objects.yaml, status.yaml      (pytest --golden-update writes them)
                               + second.yaml   ─► asked.yaml: what asks and watches the revision of this spec
                               + adapters.yaml ─► tried.yaml: what tries its adapters, and awaits that each pod serves them
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.serving import Stage, make_serve

from finetune_operator.meta import Object
from finetune_operator.names import LABEL_WATCH

CASES = sorted(p.parent for p in (Path(__file__).parents[2] / "golden" / "modelserve").glob("*/modelserve.yaml"))
KINDS = (
    "Deployment", "Service", "ConfigMap", "Job",
    "ControllerRevision", "NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget", "HTTPRoute",
)  # fmt: skip
NEEDED = [*(("Secret", name) for name in ("s3-keys", "authority", "judge-key", "keys", "redis")), ("ConfigMap", "rubric")]


def test_cases_were_found() -> None:
    assert len(CASES) >= 3


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.name)
def test_until_it_serves(case: Path, golden: Callable[[Path, str], None]) -> None:
    stage = _serving(case)
    made = (o for kind in KINDS for o in stage.of(kind) if (kind, o["metadata"]["name"]) not in NEEDED)
    golden(case / "objects.yaml", _yaml(map(_as_sent, made)))
    golden(case / "status.yaml", _yaml([stage.serve["status"]]))


@pytest.mark.parametrize("case", [case for case in CASES if (case / "second.yaml").exists()], ids=lambda p: p.name)
def test_what_asks_and_watches_the_next_revision(case: Path, golden: Callable[[Path, str], None]) -> None:
    stage = _serving(case)
    stage.later(3600)
    stage.edit(**yaml.safe_load((case / "second.yaml").read_text())["spec"])
    stage.step()
    stage.available(stage.candidate())
    stage.step()
    asking = [job for job in stage.of("Job") if not job.get("status")]
    stage.finish_gate()
    stage.settle()
    watching = [o for kind in ("Job", "Service") for o in stage.of(kind) if LABEL_WATCH in o["metadata"]["labels"]]
    assert asking
    assert watching
    golden(case / "asked.yaml", _yaml(map(_as_sent, (*asking, *watching))))


@pytest.mark.parametrize("case", [case for case in CASES if (case / "adapters.yaml").exists()], ids=lambda p: p.name)
def test_what_tries_an_adapter_and_awaits_that_pods_serve_it(case: Path, golden: Callable[[Path, str], None]) -> None:
    stage = _serving(case)
    stage.edit(**yaml.safe_load((case / "adapters.yaml").read_text())["spec"])
    stage.step()
    made = [job for job in stage.of("Job") if not job.get("status")]
    made += [service for service in stage.of("Service") if service["metadata"]["name"].endswith("-each")]
    stage.finish_gate()
    stage.step()
    made += [job for job in stage.of("Job") if not job.get("status")]
    made += [found for found in stage.of("ConfigMap") if found["metadata"]["name"] == "facts-adapters"]
    assert [o["kind"] for o in made] == ["Job", "Service", "Job", "ConfigMap"]
    golden(case / "tried.yaml", _yaml(map(_as_sent, made)))


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.name)
def test_every_pod_meets_pod_security_restricted(case: Path) -> None:
    stage = _serving(case)
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


def _serving(case: Path) -> Stage:
    serve = make_serve()
    serve["spec"] = yaml.safe_load((case / "modelserve.yaml").read_text())["spec"]
    stage = Stage(serve)
    for kind, name in NEEDED:
        stage.put({"kind": kind, "metadata": {"name": name}, "data": {"rubric.txt": "Prefer short answers."}})
    stage.roll_out()
    return stage


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
