"""Prometheus as it runs here: it scrapes the scene as the chart's monitors say, and evaluates the chart's rules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from localcluster import debian, settings
from tests.listening import free_ports
from tests.observability.scene import PODS, TEAM, operator, recorded, trainer
from tests.waiting import wait_for_server, within

from finetune_trainer.contract.reports import Progress
from finetune_trainer.progress import make_reporter

RULES = Path(__file__).parents[2] / "charts/finetune-operator/files/rules.yaml"
MONITORS = Path(__file__).parents[1] / "golden/chart/monitored/objects.yaml"
PATIENCE = 120.0  # a rate needs two scrapes and a rule over a rule two more; a busy machine takes its time


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    address: str

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that the query returns now."""
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def empty(self, queries: dict[str, str]) -> dict[str, str]:
        """The queries that return nothing, by what they are of, once all have had their time."""

        def missing() -> dict[str, str]:
            return {of: query for of, query in queries.items() if not self.ask(query)}

        return {} if within(PATIENCE, lambda: not missing(), pause=2) else missing()


def monitor(name: str) -> dict[str, Any]:
    """How the chart's monitor scrapes, as Prometheus' operator writes it into a configuration."""
    (found,) = [
        body
        for body in yaml.safe_load_all(MONITORS.read_text())
        if body["metadata"]["name"] == name and body["kind"] in ("ServiceMonitor", "PodMonitor")
    ]
    (endpoint,) = found["spec"].get("podMetricsEndpoints") or found["spec"]["endpoints"]
    relabelings = [
        {re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", key): value for key, value in rule.items()}
        for rule in endpoint.get("relabelings", ())
    ]
    return {"honor_labels": endpoint.get("honorLabels", False), "relabel_configs": relabelings}


def of_pod(pod: str) -> dict[str, str]:
    """The labels that service discovery gives a pod's target."""
    meta = {f"__meta_kubernetes_pod_label_{re.sub('[./-]', '_', key)}": value for key, value in PODS[pod].items()}
    return {"namespace": TEAM, "pod": pod, **meta}


def configuration(own: int, steps: int, others: int) -> dict[str, Any]:
    def job(name: str, port: int, path: str, labels: dict[str, str], **more: Any) -> dict[str, Any]:
        return {
            "job_name": name,
            "metrics_path": path,
            "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": labels}],
            **more,
        }

    system = {"namespace": "finetune-system", "pod": "finetune-operator-0"}
    exporter = {"namespace": "gpu-operator", "pod": "exporter-7"}
    engines = monitor("finetune-operator-engines")
    return {
        "global": {"scrape_interval": "3s", "evaluation_interval": "3s"},
        "rule_files": [RULES.name],
        "scrape_configs": [
            job("finetune-operator-metrics", own, "/metrics", system, **monitor("finetune-operator")),
            job("steps", steps, "/metrics", of_pod("faq-train-1"), **monitor("finetune-operator-steps")),
            job("vllm", others, "/vllm", of_pod("bot-r1-0"), **engines),
            job("llamacpp", others, "/llamacpp", of_pod("small-r2-0"), **engines),
            job("dcgm", others, "/dcgm", exporter, honor_labels=True),
            job("dcgm-exported", others, "/dcgm-exported", exporter),
            job("state", others, "/state", exporter, honor_labels=True),
            job("state-exported", others, "/state-exported", exporter),
        ],
    }


@contextmanager
def running(folder: Path, options: Sequence[str] = ()) -> Iterator[Prometheus]:
    """A Prometheus over the scene, which goes on while it runs. `folder` is for its data."""
    own, steps, others, port = free_ports(4)
    shutil.copy(RULES, folder)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration(own, steps, others)))
    reporter = make_reporter(steps, silent=False)

    def report(step: int) -> None:
        speed = {"loss": 1 / step, "learning_rate": 0.001, "tokens_per_second": 95.0, "memory_bytes": 2**30, "eta_seconds": 9.0}
        reporter(Progress(step_name="train", step=step, total=100, **speed))

    command = [
        str(debian.prometheus(settings.read().cache)),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        *options,
    ]
    with ExitStack() as scene:
        for part in (operator(own), recorded(others), trainer(report)):
            scene.enter_context(part)
        log = scene.enter_context((folder / "log").open("w"))
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for_server(server, f"127.0.0.1:{port}", "/-/ready")
            yield Prometheus(f"127.0.0.1:{port}")
        finally:
            server.terminate()
            server.wait(20)
