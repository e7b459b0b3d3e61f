"""Pictures of each dashboard's queries in Prometheus' own pages, by headless Chromium: docs/images is made by this.

    python -m tests.observability.pictures docs/images WEB

WEB is the folder share/prometheus/web of Debian's package, with the packages libjs-* that it depends on unpacked beside it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path

from dashboards.boards import BOARDS
from dashboards.panels import Board, Row
from tests.observability.prometheus import Prometheus, running
from tests.observability.scene import sent
from tests.waiting import within

HISTORY_SECONDS = 120.0  # that a picture shows
HEIGHTS = {"graph": 700, "table": 420, "stat": 340}  # pixels of a query with its answer


def page(prometheus: Prometheus, board: Board, row: Row) -> tuple[str, int]:
    """Address of the page with all queries of a dashboard's row, and its height in pixels."""
    options: dict[str, str] = {}
    for number, panel in enumerate(row.panels):
        tab = "0" if panel.shape == "graph" else "1"
        options |= {f"g{number}.expr": sent(board, panel), f"g{number}.tab": tab, f"g{number}.range_input": "3m"}
    address = f"http://{prometheus.address}/classic/graph?{urllib.parse.urlencode(options, quote_via=urllib.parse.quote)}"
    return address, 100 + sum(HEIGHTS[panel.shape] for panel in row.panels)


def photograph(address: str, height: int, target: Path) -> None:
    """A PNG of the page."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=30000"]
    size = [f"--window-size=1200,{height}", "--force-device-scale-factor=0.7", f"--screenshot={target}"]
    subprocess.run([*command, *size, address], check=True, capture_output=True, timeout=180)


def main() -> None:
    target, web = Path(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), [f"--web.local-assets={web}"]) as prometheus:
        within(HISTORY_SECONDS, lambda: False, pause=5)
        for board in BOARDS:
            for number, row in enumerate(board.rows, start=1):
                photograph(*page(prometheus, board, row), target / f"{board.uid}-{number}.png")


if __name__ == "__main__":
    main()
