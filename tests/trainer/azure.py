"""A real server of Azure's blobs (Azurite) on this machine's loopback, and a container in it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from localcluster import npm, settings
from localcluster.errors import BuildFailed
from tests.trainer.pods import absent
from tests.waiting import wait_for_server

ACCOUNT, CONTAINER = "tests", "artifacts"
KEY = base64.b64encode(b"no secret of anybody" * 3).decode()
API = "2021-08-06"  # version of the REST API that the container is made by


@contextmanager
def azurite(root: Path) -> Iterator[dict[str, str]]:
    """What a pod's environment has where the Secret is for this server; the container `artifacts` is there."""
    try:
        program = npm.azurite(settings.read().cache)
    except BuildFailed as error:
        absent(str(error))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--blobHost", "127.0.0.1", "--blobPort", port, "--location", str(root), "--disableTelemetry", "--silent"]
    log = root.with_name(f"{root.name}.log").open("w")
    accounts = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    server = subprocess.Popen([*program, *options, "--skipApiVersionCheck"], env=accounts, stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    try:
        wait_for_server(server, f"127.0.0.1:{port}")
        _make_container(endpoint)
        yield {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": endpoint,
        }
    finally:
        server.terminate()
        server.wait(10)
        log.close()


def _make_container(endpoint: str) -> None:
    """Create Container, signed with the account's key (Shared Key; obstore makes no containers)."""
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    path = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{API}\n{path}"
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
    headers = {"x-ms-date": date, "x-ms-version": API, "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    request = urllib.request.Request(f"{endpoint}/{CONTAINER}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request, timeout=10).close()
