"""A small server that speaks as an engine does, and the rows of an evaluation that it is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from finetune_trainer.contract.served_rows import AskedRow

ENTRY = "pvc://store/job/evaluate/" + "e" * 20


class Engine(ThreadingHTTPServer):
    """Serves one model; `answers` holds a text, or a status code with the server's message, by prompt.

    Its tokens are the letters of a text, and their ids what `ord` says.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.serves = "facts"
        self.answers: dict[str, Any] = {}
        self.requests: list[dict[str, Any]] = []
        self.told: dict[str, Any] = {}  # of the model, beside its name
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        found = self.path == "/v1/models"
        self._send(200 if found else 404, {"object": "list", "data": [{"id": self.server.serves, **self.server.told}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        if self.path == "/tokenize":
            self._tokenize(request)
            return
        is_chat = self.path == "/v1/chat/completions"
        asked = request["messages"][0]["content"] if is_chat else "".join(map(chr, request["prompt"]))
        answer = self.server.answers.get(asked, "An answer.")
        if isinstance(answer, int):
            self._send(answer, {"error": {"message": f"the engine's words about {asked}"}})
        elif request.get("stream"):
            self._stream(answer)
        elif is_chat:
            self._send(200, {"choices": [{"message": {"role": "assistant", "content": answer}}]})
        else:
            reason = "length" if answer.endswith("…") else "stop"
            self._send(200, {"choices": [{"text": answer.removesuffix("…"), "finish_reason": reason}]})

    def _stream(self, answer: str) -> None:
        """A role, then a word in each event, then the count of tokens, as vLLM and llama.cpp send them."""
        pieces: list[dict[str, Any]] = [{"role": "assistant"}, *({"content": f"{word} "} for word in answer.split())]
        events: list[dict[str, Any]] = [{"choices": [{"delta": piece}]} for piece in pieces]
        events.append({"choices": [], "usage": {"completion_tokens": 2 * len(answer.split())}})
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for event in (*map(json.dumps, events), "[DONE]"):
            self.wfile.write(f"data: {event}\n\n".encode())

    def _tokenize(self, request: dict[str, Any]) -> None:
        """The words of vLLM and of llama.cpp must say the same."""
        assert request["content"] == request["prompt"]
        assert request["add_special"] is request["add_special_tokens"]
        bos = [1] if request["add_special"] else []
        self._send(200, {"tokens": bos + list(map(ord, request["prompt"]))})

    def _send(self, code: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def started() -> Iterator[Engine]:
    """The server, while it answers."""
    server = Engine()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def asked_row(number: int, prompt: str, answer: str, **fields: Any) -> AskedRow:
    ids = tuple(map(ord, prompt))
    row = {"row": number, "prompt": prompt, "special_tokens": False, "prompt_ids": ids, "asked_ids": ids, "max_tokens": 16}
    return AskedRow.model_validate({**row, "answer": answer, **fields})
