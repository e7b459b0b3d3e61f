"""Pictures of the site and of a run's report, by headless Chromium, in the light and in the dark: docs/images has them.

python -m website.pictures REPORT.html
"""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from website.__main__ import ROOT, SITE, build

IMAGES = ROOT / "docs/images"
# Name → page of the site, height in pixels, whether in the dark.
PAGES = {"site": ("", 1150, False), "site-tutorial": ("tutorial/", 1150, True), "site-fields": ("fields/", 900, False)}
REPORTS = {"report": (2400, False), "report-dark": (1400, True)}


def photograph(address: str, target: Path, height: int, dark: bool) -> None:
    """A PNG of a page as somebody sees it who likes light, or dark, pages. Raises CalledProcessError."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]
    shown = [f"--window-size=1400,{height}", "--force-device-scale-factor=0.7", f"--screenshot={target}"]
    likes = ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run([*command, *shown, *likes, address], check=True, capture_output=True, timeout=180)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder's files: the site's links need a server."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def main() -> None:
    report = Path(sys.argv[1]).resolve()
    for name, (height, dark) in REPORTS.items():
        photograph(report.as_uri(), IMAGES / f"{name}.png", height, dark)
    build(SITE)
    with served(SITE) as address:
        for name, (page, height, dark) in PAGES.items():
            photograph(f"{address}/{page}", IMAGES / f"{name}.png", height, dark)


if __name__ == "__main__":
    main()
