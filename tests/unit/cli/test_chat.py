"""`kubectl finetune chat`: a stand-in for kubectl forwards a port to a stand-in for an engine, both on this machine."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.builders import make_job
from tests.fake_reach import FakeReach, call
from tests.listening import Quiet, listening
from tests.serving import Stage, make_serve

FORWARD = """#!/bin/sh
echo "$@" > {arguments}
echo "Forwarding from 127.0.0.1:{port} -> 8000"
exec tail -f /dev/null
"""
REFUSE = """#!/bin/sh
echo "error: unable to forward port because pod is not running" >&2
exit 1
"""


class Engine(Quiet):
    """It answers with the number of messages and the last one, in two pieces."""

    asked: list[dict[str, Any]]
    keys: list[str | None]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        self.keys.append(self.headers.get("Authorization"))
        if body["messages"][-1]["content"] == "fail":
            self.send_error(500, "out of memory")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for text in (f"{len(body['messages'])}: ", body["messages"][-1]["content"]):
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
            piece = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def engine() -> Iterator[int]:
    Engine.asked, Engine.keys = [], []
    with listening(Engine) as port:
        yield port


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: int) -> Path:
    """A program of that name, first on the PATH; the file beside it holds what it was called with."""
    folder, arguments = tmp_path / "bin", tmp_path / "arguments"
    folder.mkdir()
    program = folder / "kubectl"
    program.write_text(FORWARD.format(arguments=arguments, port=engine))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return program


def serving(**spec: Any) -> Stage:
    stage = Stage(make_serve(**spec))
    stage.roll_out()
    return stage


def test_one_question(monkeypatch: pytest.MonkeyPatch, kubectl: Path) -> None:
    result = call(monkeypatch, FakeReach(serving().serve), "chat", "facts", "-m", "Who?", "--context", "west")
    assert (result.exit_code, result.output) == (0, "1: Who?\n")
    told = (kubectl.parent.parent / "arguments").read_text()
    assert told == "--namespace default --context west port-forward service/facts :8000 --address 127.0.0.1\n"
    assert Engine.asked[0]["model"] == "facts"


@pytest.mark.usefixtures("kubectl")
def test_a_conversation_remembers_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeReach(serving().serve)
    result = call(monkeypatch, cluster, "chat", "mserve/facts", "--system", "Be brief.", typed="one\n\ntwo\n")
    assert (result.exit_code, result.output) == (0, "2: one\n4: two\n")
    said = [(m["role"], m["content"]) for m in Engine.asked[-1]["messages"]]
    assert said == [("system", "Be brief."), ("user", "one"), ("assistant", "2: one"), ("user", "two")]


@pytest.mark.usefixtures("kubectl")
def test_the_key_comes_from_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {"kind": "Secret", "metadata": {"name": "keys"}, "data": {"api-key": base64.b64encode(b"s3").decode()}}
    serve = serving().serve
    serve["spec"]["auth"] = {"secretRef": {"name": "keys"}}
    assert call(monkeypatch, FakeReach(serve, secret), "chat", "facts", "-m", "x").exit_code == 0
    assert Engine.keys == ["Bearer s3"]
    without = call(monkeypatch, FakeReach(serve), "chat", "facts", "-m", "x")
    assert without.output == "spec.auth.secretRef: there is no Secret keys with the key api-key\n"


@pytest.mark.usefixtures("kubectl")
def test_a_jobs_name_means_what_it_handed_over_to(monkeypatch: pytest.MonkeyPatch) -> None:
    handed = make_job("trained", status={"observedGeneration": 1, "serving": {"name": "facts", "ready": True}})
    assert call(monkeypatch, FakeReach(serving().serve, handed), "chat", "trained", "-m", "x").output == "1: x\n"
    nothing = call(monkeypatch, FakeReach(make_job("trained")), "chat", "trained", "-m", "x")
    assert (nothing.exit_code, nothing.output) == (2, "the job trained serves nothing; spec.serving would\n")


def test_what_goes_wrong_is_one_sentence(monkeypatch: pytest.MonkeyPatch, kubectl: Path) -> None:
    cluster = FakeReach(serving().serve)
    failed = call(monkeypatch, cluster, "chat", "facts", "-m", "fail")
    assert failed.exit_code == 2
    assert "the model did not answer: " in failed.output
    assert "no revision of facts answers" in call(monkeypatch, FakeReach(make_serve()), "chat", "facts", "-m", "x").output
    kubectl.write_text(REFUSE)
    refused = call(monkeypatch, cluster, "chat", "facts", "-m", "x")
    assert refused.output == "kubectl port-forward failed: error: unable to forward port because pod is not running\n"
    kubectl.unlink()
    monkeypatch.setenv("PATH", "/none")
    assert "kubectl can't be started" in call(monkeypatch, cluster, "chat", "facts", "-m", "x").output
