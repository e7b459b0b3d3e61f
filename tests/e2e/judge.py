"""A judge whose taste is known: a program for a pod, which speaks the OpenAI API and is no model.

    python judge.py PORT MODEL KEY

Its rubric says `Prefer answers with the word "sun".`, or `without`. Where both answers have the word, or neither, it says tie.
Whoever brings another key is refused.
"""

from __future__ import annotations

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Judge(ThreadingHTTPServer):
    """Its model's name, and the key that it asks for."""

    def __init__(self, port: int, model: str, key: str) -> None:
        super().__init__(("", port), Handler)
        self.model, self.key = model, key


class Handler(BaseHTTPRequestHandler):
    server: Judge

    def do_GET(self) -> None:
        self._send(200, {"status": "ok"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {self.server.key}":
            self._send(401, {"error": {"message": "wrong key"}})
        elif (self.path, asked["model"]) != ("/v1/chat/completions", self.server.model):
            self._send(404, {"error": {"message": "no such model"}})
        else:
            message = {"role": "assistant", "content": verdict(asked["messages"][0]["content"])}
            usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
            self._send(200, {"object": "chat.completion", "choices": [{"index": 0, "message": message}], "usage": usage})

    def _send(self, code: int, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def verdict(task: str) -> str:
    """A, B or tie."""
    ((wish, word),) = re.findall(r'Prefer answers (with|without) the word "(\w+)"', task)
    a, b = (word in re.findall(rf"<answer_{side}>(.*?)</answer_{side}>", task, re.DOTALL)[0] for side in "ab")
    return "tie" if a == b else "A" if a == (wish == "with") else "B"


if __name__ == "__main__":
    Judge(int(sys.argv[1]), sys.argv[2], sys.argv[3]).serve_forever()
