"""The chart: what it makes of six sets of values, its pages, and the one file and the base that are made of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from localcluster import chart, settings, toolchain

ROOT = Path(__file__).parents[2]
SETS = ROOT / "tests/golden/chart"
NAMES = sorted(folder.name for folder in SETS.iterdir())
KINDS = ("ServiceMonitor", "PodMonitor", "PrometheusRule")  # of the Prometheus operator
ALL_IS_WELL = 10  # the grade of a check that finds nothing
MONITORS = [f"--api-versions=monitoring.coreos.com/v1/{kind}" for kind in KINDS]


def rendered(name: str) -> list[dict[str, Any]]:
    options = [f"--values={SETS / name / 'values.yaml'}", *(MONITORS if name == "monitored" else [])]
    return chart.render(options)


@pytest.mark.parametrize("name", NAMES)
def test_a_set_of_values_makes_these_objects(name: str, golden: Callable[[Path, str], None]) -> None:
    golden(SETS / name / "objects.yaml", "---\n".join(yaml.safe_dump(b, sort_keys=False, width=1000) for b in rendered(name)))


def test_there_are_six_sets() -> None:
    assert len(NAMES) == 6


# What kube-score finds in the chart, and why it stays so.
STAYS = {
    "container-resources": "no limit of CPU: a throttled leader would lose its lease",
    "container-ephemeral-storage-request-and-limit": "it writes nothing but its log, which the kubelet rotates",
    "container-image-pull-policy": "images are pinned by tag or digest; imagePullPolicy is a value",
    "pod-networkpolicy": "operatorNetworkPolicy is a value: it needs the API server's ports",
    "deployment-has-host-podantiaffinity": "topologySpreadConstraints spread the replicas over nodes",
    "deployment-replicas": "two by default; a set that asks for one has one",
    "networkpolicy-targets-pod": "that of jobNetworkPolicies is for pods of jobs, which come later",
}


def test_kube_score_finds_what_is_answered_and_nothing_else() -> None:
    program = toolchain.binary(settings.read().cache, "kube-score")
    found: set[str] = set()
    for name in NAMES:
        options = ["--kubernetes-version=v1.36", "--output-format=json", str(SETS / name / "objects.yaml")]
        scored = json.loads(
            subprocess.run([str(program), "score", *options], check=False, capture_output=True, text=True).stdout
        )
        checks = [check for body in scored for check in body["checks"]]
        assert len(checks) > 20
        found |= {check["check"]["id"] for check in checks if not check["skipped"] and check["grade"] < ALL_IS_WELL}
    assert found == set(STAYS)


def test_monitors_are_made_only_where_their_kinds_are() -> None:
    assert set(KINDS) <= {body["kind"] for body in rendered("monitored")}
    values = f"--values={SETS / 'monitored/values.yaml'}"
    assert not {body["kind"] for body in chart.render([values])} & set(KINDS)
    assert chart.render([values, "--set=metrics.always=true"]) == rendered("monitored"), "asked for, where Helm can't see them"


def priority_class(*options: str) -> tuple[str | None, str, str | None]:
    """Version and name of the WorkloadPriorityClass that is made, and the name that the operator is told."""
    bodies = chart.render(options)
    made = next((body for body in bodies if body["kind"] == "WorkloadPriorityClass"), None)
    (deployment,) = [body for body in bodies if body["kind"] == "Deployment"]
    env = {e["name"]: e.get("value") for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    told = env["FINETUNE_LATER_STAGES_PRIORITY_CLASS"]
    return (None, told, None) if made is None else (made["apiVersion"], told, made["metadata"]["name"])


def test_later_stages_have_a_priority_where_kueue_is_and_no_job_names_one_that_is_not_there() -> None:
    name = f"{chart.NAMESPACE}-{chart.RELEASE}-later-stages"
    kueue = [f"--api-versions=kueue.x-k8s.io/{version}/WorkloadPriorityClass" for version in ("v1beta1", "v1beta2")]
    assert priority_class() == (None, "", None)
    assert priority_class(kueue[0]) == ("kueue.x-k8s.io/v1beta1", name, name)
    assert priority_class(*kueue) == ("kueue.x-k8s.io/v1beta2", name, name)
    assert priority_class("--set=kueue.always=true") == ("kueue.x-k8s.io/v1beta1", name, name)
    assert priority_class(*kueue, "--set=kueue.laterStagesPriority=0") == (None, "", None)


@pytest.mark.parametrize("name", NAMES)
def test_each_pod_is_behind_one_service_that_is_scraped(name: str) -> None:
    bodies = rendered(name)
    (template,) = [body["spec"]["template"] for body in bodies if body["kind"] == "Deployment"]
    labels = template["metadata"]["labels"].items()
    assert len([b for b in bodies if b["kind"] == "Service" and b["spec"]["selector"].items() <= labels]) == 1


def test_every_value_has_a_comment_and_a_place_in_the_schema() -> None:
    values = chart.values_page().partition("## Rights")[0]
    rows = [line.split(" | ") for line in values.splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert [row[0] for row in rows if not row[2].strip(" |")] == []
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    assert [row[0] for row in rows if not _in_schema(schema, row[0].strip("| `").split("."))] == []


def _in_schema(schema: dict[str, Any], path: list[str]) -> bool:
    for name in path:
        if name not in schema.get("properties", {}):
            return False
        schema = schema["properties"][name]
    return True


def test_the_page_of_values_is_fresh() -> None:
    assert (ROOT / "docs/values.md").read_text() == chart.values_page(), "docs/values.md is stale: run `make install-yaml`"


def test_install_yaml_is_fresh() -> None:
    assert (ROOT / "install/install.yaml").read_text() == chart.install_yaml(), "it is stale: run `make install-yaml`"


def test_install_yaml_is_the_chart_with_its_definitions_and_its_namespace() -> None:
    space, *bodies = yaml.safe_load_all((ROOT / "install/install.yaml").read_text())
    assert (space["kind"], space["metadata"]["name"]) == ("Namespace", chart.NAMESPACE)
    definitions = [body for body in bodies if body["kind"] == "CustomResourceDefinition"]
    assert definitions == [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "crds").glob("*.yaml"))]
    made = [body for body in bodies if body not in definitions]
    assert made == [chart.without_helm(body) for body in chart.render()]
    assert "Helm" not in yaml.safe_dump(made), "kubectl made it"


def test_the_base_is_install_yaml() -> None:
    kubectl = toolchain.kubernetes(settings.read().cache, "kubectl")
    text = subprocess.run([kubectl, "kustomize", ROOT / "install"], check=True, capture_output=True, text=True).stdout

    def by_name(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(bodies, key=lambda body: (body["kind"], body["metadata"]["name"]))

    wanted = yaml.safe_load_all((ROOT / "install/install.yaml").read_text())
    assert by_name(list(yaml.safe_load_all(text))) == by_name(list(wanted))


def test_the_chart_of_the_definitions_has_them_and_keeps_them() -> None:
    helm = toolchain.binary(settings.read().cache, "helm")
    command = [str(helm), "template", "crds", str(ROOT / "charts/finetune-operator-crds"), f"--kube-version={chart.KUBERNETES}"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for made, file in zip(yaml.safe_load_all(text), sorted((ROOT / "crds").glob("*.yaml")), strict=True):
        assert made["metadata"].pop("annotations")["helm.sh/resource-policy"] == "keep"
        definition = yaml.safe_load(file.read_text())
        definition["metadata"].pop("annotations", None)
        assert made == definition


def test_both_charts_have_the_version_of_the_project() -> None:
    charts = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "charts").glob("*/Chart.yaml"))]
    assert len(charts) == 2
    version = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version"))
    assert {c["version"] for c in charts} == {c["appVersion"] for c in charts} == {version.split('"')[1]}
