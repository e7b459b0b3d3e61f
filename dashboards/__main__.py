"""Writes Grafana's dashboards into the chart.

python -m dashboards FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.boards import BOARDS
from dashboards.panels import built


def render() -> dict[str, str]:
    """Each dashboard as JSON, by the name of its file."""
    encoder = JSONEncoder(sort_keys=True, indent=1)
    return {f"{board.uid}.json": encoder.encode(built(board)) + "\n" for board in BOARDS}


if __name__ == "__main__":
    for name, text in render().items():
        (Path(sys.argv[1]) / name).write_text(text)
