"""What the demo prints: each step with its time, one live line, and a table of answers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from localcluster.work import duration

PLAIN_SECONDS = 15.0  # between two lines where the output is no terminal
LINE = 118  # columns


class DemoFailed(Exception):
    """What happened and what to do about it; printed as it is."""


@contextmanager
def step(name: str, note: str = "") -> Iterator[None]:
    """Print a step's name with a note on what to expect, what it prints itself, and its time."""
    begin = time.monotonic()
    print(f"\n── {name}{f' ({note})' if note else ''}", flush=True)
    yield
    print(f"   {name}: {duration(time.monotonic() - begin)}", flush=True)


class LiveLine:
    """One line that is written over on a terminal; elsewhere a line now and then, and at each new `topic`."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._shown_at = 0.0
        self._topic = self._text = ""

    def show(self, topic: str, text: str) -> None:
        """`topic` is what the line is about; a change of it begins a new line."""
        if self._is_terminal:
            if topic != self._topic and self._topic:
                print()
            print(f"\r\033[K   {text[:LINE]}", end="", flush=True)
        elif text != self._text and (topic != self._topic or time.monotonic() - self._shown_at > PLAIN_SECONDS):
            print(f"   {text}", flush=True)
            self._shown_at = time.monotonic()
        self._topic, self._text = topic, text

    def close(self) -> None:
        """Leave the last text standing."""
        if self._is_terminal and self._topic:
            print()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], limits: Sequence[int]) -> str:
    """Columns as wide as they need to be, at most `limits`; what is longer is cut with an ellipsis."""
    cells = [[_cut(cell, limit) for cell, limit in zip(row, limits, strict=True)] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(f"   {line}" for line in (lines[0], "  ".join("─" * width for width in widths), *lines[1:]))


def _cut(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
