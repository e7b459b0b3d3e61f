"""A real Prometheus scrapes our programs and recorded exporters: the query of each panel and of each alert returns series."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards.boards import BOARDS
from localcluster import debian, settings
from tests.observability.scene import PODS, TEAM, operator, recorded, trainer
from tests.observability.test_rules import ALERTS, ALL, RULES
from tests.waiting import wait_for_server, within

from finetune_trainer.contract.reports import Progress
from finetune_trainer.progress import make_reporter

MONITORS = Path(__file__).parents[1] / "golden/chart/monitored/objects.yaml"
CHOSEN = {"finetune-job": "faq", "finetune-served": "bot"}
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


def free_ports(count: int) -> list[int]:
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


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
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
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


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder, (own, steps, others, port) = tmp_path_factory.mktemp("prometheus"), free_ports(4)
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


def panels() -> dict[str, str]:
    """Each panel's query, as Grafana sends it for the object that is chosen."""
    found = {}
    for board in BOARDS:
        for row in board.rows:
            for panel in row.panels:
                query = panel.query.replace("$__rate_interval", "1m").replace("$namespace", TEAM)
                found[f"{board.uid}: {row.title}: {panel.title}"] = query.replace("$name", CHOSEN.get(board.uid, ""))
    return found


def compared(alert: str) -> Iterator[str]:
    """What an alert compares, whatever the comparison says: `bool` lets all of it through. What it takes for absent is asked
    for by itself."""
    for part in re.split(r"\bunless on \([\w, ]*\)", re.sub(r"absent\((.*)\)$", r"\1", alert.strip(), flags=re.DOTALL)):
        yield re.sub(r"(==|>|<)(?=\s)", r"\1 bool", part)


def test_every_target_is_scraped(prometheus: Prometheus) -> None:
    assert prometheus.empty({"up": "count(up == 1) == 8"}) == {}


def test_each_panel_s_query_returns_series(prometheus: Prometheus) -> None:
    queries = panels()
    assert len(queries) > 60
    assert prometheus.empty(queries) == {}


def test_each_rule_records_something(prometheus: Prometheus) -> None:
    assert prometheus.empty({rule["record"]: rule["record"] for rule in ALL if "record" in rule}) == {}


def test_what_each_alert_asks_for_is_told(prometheus: Prometheus) -> None:
    asked = {f"{rule['alert']} {n}: {query}": query for rule in ALERTS for n, query in enumerate(compared(rule["expr"]))}
    assert len(asked) > len(ALERTS)
    assert prometheus.empty(asked) == {}


def test_alerts_tell_what_is_wrong_in_the_scene_and_nothing_else(prometheus: Prometheus) -> None:
    wrong = {"FinetuneStalled": "bad", "FinetuneHang": "faq", "FinetuneGateFailed": "faq", "FinetuneNotAvailable": "gone"}
    queries = {alert: f'ALERTS{{alertname="{alert}", name="{name}"}}' for alert, name in wrong.items()}
    assert prometheus.empty(queries) == {}
    told = {(s["metric"]["alertname"], s["metric"].get("name")) for s in prometheus.ask("ALERTS")}
    assert told - {("FinetuneErrorBudgetBurn", "gone")} == set(wrong.items())


def test_both_engines_tell_by_the_same_names(prometheus: Prometheus) -> None:
    both = ("requests_running", "requests_waiting", "prompt_tokens:rate5m", "generated_tokens:rate5m", "errors:ratio_rate5m")
    assert prometheus.empty({name: f'count(finetune:{name}{{name=~"bot|small"}}) == 2' for name in both}) == {}


def test_a_gpu_is_joined_with_its_job_in_both_label_styles(prometheus: Prometheus) -> None:
    assert prometheus.empty({"both": "count(finetune:gpu_utilization:ratio) == 2"}) == {}
    found = {s["metric"]["name"]: s["metric"]["pod"] for s in prometheus.ask("finetune:gpu_utilization:ratio")}
    assert found == {"faq": "faq-train-1", "bot": "bot-r1-0"}
