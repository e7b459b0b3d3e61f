"""Grafana's dashboards: fresh, of Grafana's own shape, and without a panel that nobody can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dashboards.__main__ import render
from dashboards.boards import BOARDS
from dashboards.panels import Board
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

FOLDER = Path(__file__).parents[2] / "charts/finetune-operator/files/dashboards"
UNITS = {"short", "none", "s", "bytes", "percentunit", "watt", "sci"}


def test_they_are_fresh() -> None:
    assert {f.name: f.read_text() for f in FOLDER.iterdir()} == render(), "they are stale: run `make dashboards`"
    assert len(BOARDS) == 4


@pytest.mark.parametrize("name", sorted(render()))
def test_each_is_of_the_shape_that_grafana_s_own_types_read(name: str) -> None:
    register_default_plugins()
    text = (FOLDER / name).read_text()
    read = JSONEncoder(sort_keys=True, indent=1).encode(Dashboard.from_json(json.loads(text)))
    assert read + "\n" == text, "a field that Grafana's schema doesn't know would be lost"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_each_panel_can_be_told_from_the_others(board: Board) -> None:
    panels = [panel for row in board.rows for panel in row.panels]
    assert len(panels) > 10
    assert {panel.unit for panel in panels} <= UNITS
    for row in board.rows:
        assert len({panel.title for panel in row.panels}) == len(row.panels)
    assert [p.title for p in panels if p.shape == "graph" and not p.legend] == []
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{board.uid}.json").read_text())["panels"]
    numbers = [panel["id"] for panel in found]
    assert len(set(numbers)) == len(numbers) == len(panels) + len(board.rows)
