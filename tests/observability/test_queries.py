"""A real Prometheus scrapes our programs and recorded exporters: the query of each panel and of each alert returns series."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from dashboards.boards import BOARDS
from tests.observability.prometheus import PATIENCE, Prometheus, running
from tests.observability.scene import sent
from tests.observability.test_rules import ALERTS, ALL
from tests.waiting import within


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with running(tmp_path_factory.mktemp("prometheus")) as found:
        yield found


def compared(alert: str) -> Iterator[str]:
    """What an alert compares, whatever the comparison says: `bool` lets all of it through. What it takes for absent is asked
    for by itself."""
    for part in re.split(r"\bunless on \([\w, ]*\)", re.sub(r"absent\((.*)\)$", r"\1", alert.strip(), flags=re.DOTALL)):
        yield re.sub(r"(==|>|<)(?=\s)", r"\1 bool", part)


def test_every_target_is_scraped(prometheus: Prometheus) -> None:
    assert prometheus.empty({"up": "count(up == 1) == 8"}) == {}


def test_each_panel_s_query_returns_series(prometheus: Prometheus) -> None:
    rows = [(board, row) for board in BOARDS for row in board.rows]
    queries = {f"{board.uid}: {row.title}: {panel.title}": sent(board, panel) for board, row in rows for panel in row.panels}
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

    def told() -> set[tuple[str, str | None]]:
        found = {(s["metric"]["alertname"], s["metric"].get("name")) for s in prometheus.ask("ALERTS")}
        return found - {("FinetuneErrorBudgetBurn", "gone")}

    # A scrape that came too late, on a busy machine, is an absence for a moment: it is over with the next one.
    within(PATIENCE, lambda: told() == set(wrong.items()), pause=2)
    assert told() == set(wrong.items())


def test_both_engines_tell_by_the_same_names(prometheus: Prometheus) -> None:
    both = ("requests_running", "requests_waiting", "prompt_tokens:rate5m", "generated_tokens:rate5m", "errors:ratio_rate5m")
    assert prometheus.empty({name: f'count(finetune:{name}{{name=~"bot|small"}}) == 2' for name in both}) == {}


def test_a_gpu_is_joined_with_its_job_in_both_label_styles(prometheus: Prometheus) -> None:
    assert prometheus.empty({"both": "count(finetune:gpu_utilization:ratio) == 2"}) == {}
    found = {s["metric"]["name"]: s["metric"]["pod"] for s in prometheus.ask("finetune:gpu_utilization:ratio")}
    assert found == {"faq": "faq-train-1", "bot": "bot-r1-0"}
