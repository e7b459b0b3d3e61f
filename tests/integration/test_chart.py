"""The chart: every setting reaches the operator, no right is broader than it must be, and the pods are restricted."""

from __future__ import annotations

import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.integration.conftest import SYSTEM, World, chart

from finetune_operator.settings import Settings, read_settings


def the(kind: str, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [b for b in bodies if b["kind"] == kind]
    return found


def test_every_setting_is_set_and_the_defaults_are_the_operators_own() -> None:
    container = the("Deployment", chart())["spec"]["template"]["spec"]["containers"][0]
    environment = {e["name"]: e.get("value") for e in container["env"]}
    assert {f"FINETUNE_{f.name.upper()}" for f in fields(Settings)} <= set(environment)
    settings = read_settings({k: v for k, v in environment.items() if v is not None})
    differ = {f.name for f in fields(Settings) if getattr(settings, f.name) != f.default}
    assert all(name.endswith("_image") for name in differ), "a tag is the chart's version; all else is as in settings.py"


def test_values_reach_the_operator() -> None:
    values = ("workers=3", "progressSeconds=2", "leaderElection=false", "images.trainer=registry:5000/t", "logLevel=debug")
    platform = ("profiles.a100.queueName=a100s", "profiles.a100.nodeSelector.gpu=a100", "allowed.storage={s3://team-*,pvc://*}")
    container = the("Deployment", chart(*values, *platform))["spec"]["template"]["spec"]["containers"][0]
    settings = read_settings({e["name"]: e["value"] for e in container["env"] if "value" in e})
    assert (settings.workers, settings.progress_seconds, settings.leader_election) == (3, 2.0, False)
    assert settings.trainer_image.startswith("registry:5000/t:")
    assert settings.log_level == "debug"
    assert settings.platform.profiles["a100"].node_selector == {"gpu": "a100"}
    assert settings.platform.allowed.storage == ("s3://team-*", "pvc://*")


def test_a_misspelt_value_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        chart("wrokers=3")
    assert "wrokers" in refusal.value.stderr


def test_no_right_is_broad() -> None:
    rules = the("ClusterRoleBinding", chart())["roleRef"]["name"]
    (role,) = [b for b in chart() if b["kind"] == "ClusterRole" and b["metadata"]["name"] == rules]
    granted = {(r, v) for rule in role["rules"] for r in rule["resources"] for v in rule["verbs"]}
    assert not any("*" in (r, v) for r, v in granted)
    assert {v for r, v in granted if r == "secrets"} == {"get"}, "secrets are read by name and never listed"
    assert {v for r, v in granted if r == "pods"} == {"list", "watch", "patch"}, "pods are annotated, and never made or deleted"
    assert not {r for r, _ in granted} & {"roles", "rolebindings", "customresourcedefinitions", "nodes", "namespaces"}


def test_with_a_namespace_to_watch_there_is_no_right_beyond_it() -> None:
    bodies = chart("watchNamespace=team", "rbac.aggregate=false")
    assert not [b["kind"] for b in bodies if b["kind"].startswith("Cluster")]
    spaces = {b["metadata"]["name"]: b["metadata"]["namespace"] for b in bodies if b["kind"] == "Role"}
    assert spaces == {f"{SYSTEM}-finetune-operator": "team", "finetune-operator-leader": SYSTEM}


@pytest.mark.parametrize("values", [(), ("watchNamespace=team",)])
def test_two_releases_share_nothing_whatever_their_names_and_namespaces(values: tuple[str, ...]) -> None:
    releases = [("finetune-operator", "a"), ("finetune-operator", "b"), ("second", "a")]
    seen: set[tuple[str, str, str]] = set()
    leases: set[tuple[str, str]] = set()
    for release, namespace in releases:
        bodies = chart(*values, release=release, namespace=namespace)
        names = {(b["kind"], b["metadata"].get("namespace", ""), b["metadata"]["name"]) for b in bodies}
        names = {n for n in names if n[0] != "CustomResourceDefinition"}
        assert not names & seen
        seen |= names
        environment = the("Deployment", bodies)["spec"]["template"]["spec"]["containers"][0]["env"]
        (lease,) = [e["value"] for e in environment if e["name"] == "FINETUNE_LEASE"]
        (leader,) = [b for b in bodies if b["kind"] == "Role" and b["metadata"]["name"].endswith("-leader")]
        assert [r["resourceNames"] for r in leader["rules"] if "resourceNames" in r] == [[lease]]
        leases.add((namespace, lease))
    assert len(leases) == len(releases)


def test_the_pod_is_taken_where_pods_must_be_restricted(world: World) -> None:
    template = the("Deployment", chart())["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": template["spec"]}
    world.api.request("POST", f"/api/v1/namespaces/{SYSTEM}/pods?dryRun=All", pod)


def test_editors_of_a_namespace_may_write_our_kinds_and_viewers_may_read(world: World) -> None:
    for role, verbs in {"view": {"get", "list", "watch"}, "edit": {"create", "update", "patch", "delete"}}.items():
        found = world.get(f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{SYSTEM}-finetune-operator-{role}")
        assert found is not None
        assert found["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"
        assert verbs <= set(found["rules"][0]["verbs"])


SETS = Path(__file__).parents[1] / "golden/chart"
NOT_OURS = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}  # kinds of the Prometheus operator, which a bare API server lacks


@pytest.mark.parametrize("name", sorted(folder.name for folder in SETS.iterdir()))
def test_the_api_server_takes_each_set_of_values_to_the_last_field(world: World, name: str, tmp_path: Path) -> None:
    """Strictly: a field that it does not know, or that comes twice, is refused and not dropped."""
    bodies = [b for b in yaml.safe_load_all((SETS / name / "objects.yaml").read_text()) if b["kind"] not in NOT_OURS]
    for space in {b["metadata"]["namespace"] for b in bodies if "namespace" in b["metadata"]}:
        world.namespace(space)
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(bodies))
    strictly = ("--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")
    said = world.kubectl("apply", *strictly, "-f", str(file), "-o", "name")
    assert len(said.splitlines()) == len(bodies)
