"""How every panel of ours looks, and what it asks: title, query, legend, unit, and a sentence where the title needs one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.dashboard import Dashboard, DataTransformerConfig, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTHS = {"stat": 4, "table": 24, "graph": 12}  # of the 24 columns that Grafana has


@dataclass(frozen=True)
class Panel:
    """`unit` is one of Grafana's: short, percentunit, bytes, s, watt, …"""

    title: str
    query: str
    legend: str = ""
    unit: str = "short"
    says: str = ""
    shape: str = "graph"  # stat, table


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """One dashboard. Each of `variables` is a label of `chosen_from`, which the one before it narrows."""

    uid: str
    title: str
    rows: tuple[Row, ...]
    variables: tuple[str, ...] = ()
    chosen_from: str = ""


def built(board: Board) -> Dashboard:
    """The dashboard as Grafana reads it."""
    made = dashboard.Dashboard(board.title).uid(board.uid).tags(["finetune"]).refresh("30s").time("now-3h", "now")
    made = made.readonly().with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for index, name in enumerate(board.variables):
        narrowed = ", ".join(f'{label}="${label}"' for label in board.variables[:index])
        query = f"label_values({board.chosen_from}{{{narrowed}}}, {name})"
        made = made.with_variable(
            dashboard.QueryVariable(name)
            .label(name.capitalize())
            .datasource(SOURCE)
            .query({"query": query, "refId": name})
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
    numbers = itertools.count(1)
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            made = made.with_panel(_panel(panel).id(next(numbers)))
    return made.build()


def _panel(panel: Panel) -> Any:
    query = prometheus.Dataquery().expr(panel.query).legend_format(panel.legend).datasource(SOURCE).ref_id("A")
    made: Any
    if panel.shape == "stat":
        made = stat.Panel().with_target(query.instant()).height(4)
    elif panel.shape == "table":
        drop = DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True, "__name__": True}})
        made = table.Panel().with_target(query.instant().format(PromQueryFormat.TABLE)).with_transformation(drop).height(8)
    else:
        made = timeseries.Panel().with_target(query.range()).fill_opacity(10).min(0).height(8)
    return made.title(panel.title).description(panel.says).unit(panel.unit).span(WIDTHS[panel.shape]).datasource(SOURCE)
