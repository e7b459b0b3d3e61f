"""Waits for real processes. This is the one place where a test's process sleeps: between two looks, never past a deadline."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 60.0  # seconds; a busy machine needs a few


def within(seconds: float, check: Callable[[], T], pause: float = 0.1) -> T:
    """The first true value of `check`, or its last one after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < end:
        time.sleep(pause)
    return found


def wait_until(what: str, check: Callable[[], T], seconds: float = PATIENCE) -> T:
    """The first true value of `check`; fails, saying what was waited for."""
    found = within(seconds, check)
    assert found, f"waited {seconds:.0f} s in vain until {what}"
    return found


def slowness() -> float:
    """How many times as long as on a quiet machine everything takes here now."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


async def lasts(seconds: float) -> None:
    """A fault, or the silence after it, takes its time; what else goes on does so beside it."""
    await asyncio.sleep(seconds)


def takes_connections(address: str) -> bool:
    """Whether somebody does at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def wait_for_server(server: subprocess.Popen[bytes], address: str, path: str | None = None, seconds: float = PATIENCE) -> None:
    """Wait until it takes connections, or answers this path over HTTP; fails at once where it has ended."""

    def answers() -> bool:
        assert server.poll() is None, f"{server.args!r} ended at once"
        if path is None:
            return takes_connections(address)
        try:
            urllib.request.urlopen(f"http://{address}{path}", timeout=1).close()
        except OSError:
            return False
        return True

    wait_until(f"{address} answers", answers, seconds)
