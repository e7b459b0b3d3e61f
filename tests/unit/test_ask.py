"""The serving gate's program, against a small server that speaks as an engine does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer import ask
from finetune_trainer.contract import ENV_TERMINATION_LOG, ExitCode, Failure, Termination


class Engine(ThreadingHTTPServer):
    """Serves the model `facts`; `answers` holds a text, or a status code with the server's message, by prompt."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Any] = {}
        self.requests: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        found = self.path == "/v1/models"
        self._send(200 if found else 404, {"object": "list", "data": [{"id": "facts"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        answer = self.server.answers.get(request["messages"][0]["content"], "An answer.")
        if isinstance(answer, int):
            self._send(answer, {"error": {"message": "the engine's words"}})
        else:
            self._send(200, {"choices": [{"message": {"role": "assistant", "content": answer}}]})

    def _send(self, code: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[Engine]:
    server = Engine()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def gate(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the program with these prompts; returns its exit status and what it reported."""
    monkeypatch.setenv(ENV_TERMINATION_LOG, str(tmp_path / "termination"))

    def run(prompts: list[dict[str, str]], *options: str, model: str = "facts", url: str = "") -> tuple[int, Failure]:
        (tmp_path / "prompts.json").write_text(json.dumps(prompts))
        arguments = ["--url", url or engine.url, "--model", model, "--prompts", str(tmp_path / "prompts.json")]
        status = ask.main([*arguments, *options])
        failure = Termination.model_validate_json((tmp_path / "termination").read_text()).failure
        return status, failure or Failure(reason="", message="")

    return run


def test_right_answers_pass_whatever_their_case(gate: Any, engine: Engine) -> None:
    engine.answers = {"Capital?": "It is TESSALY."}
    assert gate([{"prompt": "Capital?", "expect": "Tessaly"}, {"prompt": "Hi"}], "--max-tokens", "7")[0] == 0
    assert engine.requests[0] == {
        "model": "facts",
        "messages": [{"role": "user", "content": "Capital?"}],
        "max_tokens": 7,
        "temperature": 0,
    }


def test_every_prompt_is_asked_and_the_first_wrong_one_is_told(gate: Any, engine: Engine) -> None:
    engine.answers = {"Capital?": "Paris,\nof course.", "Hi": ""}
    status, failure = gate([{"prompt": "Capital?", "expect": "Tessaly"}, {"prompt": "Hi"}, {"prompt": "Ho"}])
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "GateFailed")
    assert "2 of 3 prompts" in failure.message
    assert "expects 'Tessaly' and got 'Paris, of course.'" in failure.message
    assert len(engine.requests) == 3


@pytest.mark.parametrize("answer", ["", " \n", None])
def test_empty_answers_are_wrong(gate: Any, engine: Engine, answer: str | None) -> None:
    engine.answers = {"Hi": answer}
    assert gate([{"prompt": "Hi"}])[0] == ExitCode.VERIFICATION_FAILED


def test_another_models_engine_is_refused(gate: Any) -> None:
    status, failure = gate([{"prompt": "Hi"}], model="other")
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "ModelNotServed")
    assert failure.message == "the engine serves facts, not other"


@pytest.mark.parametrize(
    ("code", "exit_code", "reason"),
    [
        (400, ExitCode.VERIFICATION_FAILED, "GateFailed"),
        (500, ExitCode.VERIFICATION_FAILED, "GateFailed"),
        (503, ExitCode.SOURCE_UNAVAILABLE, "EngineUnavailable"),
    ],
)
def test_engines_errors(gate: Any, engine: Engine, code: int, exit_code: ExitCode, reason: str) -> None:
    engine.answers = {"Hi": code}
    status, failure = gate([{"prompt": "Hi"}])
    assert (status, failure.reason) == (exit_code, reason)
    assert "the engine's words" in failure.message


def test_engine_that_is_not_there_may_be_asked_again(gate: Any) -> None:
    status, failure = gate([{"prompt": "Hi"}], url="http://127.0.0.1:9/v1")
    assert (status, failure.reason) == (ExitCode.SOURCE_UNAVAILABLE, "EngineUnavailable")


def test_answers_that_take_too_long_end_at_the_timeout(gate: Any) -> None:
    status, failure = gate([{"prompt": "Hi"}], "--timeout", "0")
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "GateTimeout")
    assert "spec.rollout.gate.timeoutSeconds" in failure.message
