"""The chart's rules: promtool runs each on series as they are told, and each alert has its page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from localcluster import debian, settings
from tests.observability.prometheus import RULES

ROOT = Path(__file__).parents[2]
TESTS = Path(__file__).with_name("rules_test.yaml")
ALL: list[dict[str, Any]] = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ALL if "alert" in rule]


@pytest.fixture(scope="module")
def promtool() -> Path:
    return debian.prometheus(settings.read().cache, "promtool")


def test_each_rule_does_what_its_tests_say(promtool: Path, tmp_path: Path) -> None:
    for file in (RULES, TESTS):
        shutil.copy(file, tmp_path)
    done = subprocess.run([promtool, "test", "rules", TESTS.name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_has_an_expectation() -> None:
    """An alert has two: it fires, and under what is nearly the same it does not."""
    expected = [test for group in yaml.safe_load(TESTS.read_text())["tests"] for test in group["promql_expr_test"]]
    fired = re.findall(r'alertname="(\w+)"', str([test["exp_samples"] for test in expected]))
    recorded = " ".join(test["expr"] for test in expected if test["exp_samples"])
    assert len(ALL) > 30
    assert [r["record"] for r in ALL if "record" in r and r["record"] not in recorded] == []
    assert {r["alert"] for r in ALERTS} == set(fired)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_has_a_severity_a_sentence_and_a_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    sections = dict(re.findall(r"^## (\w+)\n\n(.+?)(?=^## |\Z)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL))
    assert anchor == rule["alert"].lower()
    assert "**Look**" in sections[rule["alert"]]
    assert "**Do**" in sections[rule["alert"]]


def test_every_section_is_of_an_alert() -> None:
    sections = re.findall(r"^## (Finetune\w+)$", (ROOT / "docs/alerts.md").read_text(), re.MULTILINE)
    assert sections == list(dict.fromkeys(rule["alert"] for rule in ALERTS)), "in the order of rules.yaml"
