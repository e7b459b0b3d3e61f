"""One request to an API server, which here is a server of the test's own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.listening import Quiet, listening

from finetune_operator.apiserver import ApiServer, Request

BODY = {"kind": "Job", "metadata": {"name": "facts"}, "spec": {"parallelism": 1, "suspend": True}}


class Echo(Quiet):
    """Answers with what was asked for and sent."""

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(200, json.dumps({"path": self.path, "sent": sent}).encode())


async def post(directory: Path, server: str) -> Any:
    """The answer to a POST; the server is found as people have it found, by a kubeconfig."""
    (directory / "kubeconfig").write_text(
        json.dumps(
            {
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                "clusters": [{"name": "test", "cluster": {"server": server}}],
                "users": [{"name": "test", "user": {"token": "x"}}],
            }
        )
    )
    api = await ApiServer.connect()
    try:
        return await api.json(Request("POST", "/jobs/facts", {"fieldManager": "us"}, BODY))
    finally:
        await api.close()


@pytest.fixture(autouse=True)
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))


async def test_a_request_asks_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    with listening(Echo) as port:
        monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", lambda *given: asked.append(given))
        found = await post(tmp_path, f"http://127.0.0.1:{port}")
    assert found == {"path": "/jobs/facts?fieldManager=us", "sent": BODY}
    assert asked == []


async def test_a_proxy_of_the_environment_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(Echo) as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        found = await post(tmp_path, "http://cluster.example")
    assert found == {"path": "http://cluster.example/jobs/facts?fieldManager=us", "sent": BODY}
