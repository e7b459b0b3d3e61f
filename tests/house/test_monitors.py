"""Every pod that serves metrics is scraped, and once: what the chart's monitors select, of all that the operator makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

GOLDEN = Path(__file__).parents[1] / "golden"
Object = dict[str, Any]


def bodies(pattern: str) -> list[Object]:
    found = [body for file in sorted(GOLDEN.glob(pattern)) for body in yaml.safe_load_all(file.read_text())]
    assert found, pattern
    return found


CHART = bodies("chart/monitored/objects.yaml")
MADE = [*CHART, *bodies("modelserve/*/objects.yaml"), *bodies("finetunejob/*/objects.yaml")]


@dataclass(frozen=True)
class Pod:
    """What a monitor sees of a pod."""

    labels: dict[str, str]
    ports: tuple[str, ...]


def pods() -> list[Pod]:
    templates = [body["spec"]["template"] for body in MADE if body["kind"] in ("Deployment", "Job")]
    return [
        Pod(t["metadata"]["labels"], tuple(p["name"] for c in t["spec"]["containers"] for p in c.get("ports", ())))
        for t in templates
    ]


def selects(selector: Object, labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    exist = [e["key"] for e in selector.get("matchExpressions", ()) if e["operator"] == "Exists"]
    assert len(exist) == len(selector.get("matchExpressions", ())), "another operator: teach this test"
    return selector.get("matchLabels", {}).items() <= labels.items() and set(exist) <= set(labels)


def targets(pod: Pod) -> Iterator[str]:
    """The monitors that scrape this pod, each as often as it does."""
    for monitor in (b for b in CHART if b["kind"] in ("ServiceMonitor", "PodMonitor")):
        name, spec = monitor["metadata"]["name"], monitor["spec"]
        if monitor["kind"] == "PodMonitor":
            ports = [e["port"] for e in spec["podMetricsEndpoints"] if selects(spec["selector"], pod.labels)]
            yield from (name for port in ports for mine in pod.ports if mine == port)
        else:
            behind = [
                service
                for service in MADE
                if service["kind"] == "Service"
                and selects(spec["selector"], service["metadata"].get("labels", {}))
                and service["spec"]["selector"].items() <= pod.labels.items()
            ]
            yield from (name for _ in behind)


def role(pod: Pod) -> str:
    labels = pod.labels
    if "finetune.dev/step" in labels:
        return "step"
    if "finetune.dev/serve" in labels:
        return "engine" if "finetune.dev/revision" in labels else "gate"
    return "operator"


@pytest.mark.parametrize(
    ("which", "monitors"),
    [
        ("operator", ["finetune-operator"]),
        ("engine", ["finetune-operator-engines"]),
        ("step", ["finetune-operator-steps"]),
        ("gate", []),
    ],
)
def test_each_pod_is_scraped_once(which: str, monitors: list[str]) -> None:
    found = [list(targets(pod)) for pod in pods() if role(pod) == which]
    assert found
    assert found == [monitors] * len(found)


def test_an_engine_is_behind_two_services_so_that_its_monitor_must_not_ask_them() -> None:
    """The test above rests on it: were there one Service, a ServiceMonitor would do."""
    (engine, *_) = [pod for pod in pods() if role(pod) == "engine"]
    services = [b for b in MADE if b["kind"] == "Service" and b["spec"]["selector"].items() <= engine.labels.items()]
    assert len(services) == 2
