"""A real Redis, Debian's, for the tests of the response cache."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localcluster import debian, settings
from tests.waiting import wait_for_server

PASSWORD = "p4ss"


@dataclass(frozen=True)
class RedisServer:
    process: subprocess.Popen[bytes]
    url: str  # with its password


@contextmanager
def started(folder: Path, host: str, port: int) -> Iterator[RedisServer]:
    """It listens there until the block ends; what it has is lost with it."""
    program, libraries = debian.redis_server(settings.read().cache)
    environment = {"LD_LIBRARY_PATH": ":".join(map(str, libraries)), "PATH": debian.SYSTEM_PATH}
    command = ["redis-server", "--port", str(port), "--bind", host, "--requirepass", PASSWORD, "--save", ""]
    with (folder / "redis.log").open("w") as log:
        server = subprocess.Popen(command, executable=program, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        wait_for_server(server, f"{host}:{port}")
        yield RedisServer(server, f"redis://:{PASSWORD}@{host}:{port}/0")
    finally:
        server.kill()
        server.wait()
