"""vLLM's API for adapters as its documentation has it, by a small real server: for tests of what talks to it.

It is no vLLM: tests/e2e/test_adapters.py has a real one. It takes adapters by name and path, lists them beside the model they
are laid over, refuses what it is told to, forgets all when it is started anew, and counts what it was asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.listening import Quiet, listening


@dataclass
class Engine:
    """What it has loaded, by name; `refuses` are names that it does not load, with its words."""

    loaded: dict[str, str] = field(default_factory=dict)
    refuses: dict[str, str] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    away: bool = False
    api_key: str | None = None

    def restart(self) -> None:
        self.loaded.clear()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            cards = [{"id": "base"}, *({"id": name, "root": root, "parent": "base"} for name, root in self.loaded.items())]
            return 200, {"data": cards}
        if path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"], body["lora_path"])
        if path == "/v1/unload_lora_adapter" and body["lora_name"] in self.loaded:
            self.unloads.append(body["lora_name"])
            del self.loaded[body["lora_name"]]
            return 200, "Success: removed"
        return 404, {"error": {"message": "not found"}}

    def _load(self, name: str, folder: str) -> tuple[int, Any]:
        if name in self.loaded:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
        if name in self.refuses:
            return 500, {"error": {"message": self.refuses[name]}}
        if not (Path(folder) / "adapter_config.json").is_file():
            return 404, {"error": {"message": f"No adapter found for {folder}"}}
        self.loaded[name] = folder
        self.loads.append(name)
        return 200, "Success: added"


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """The engine behind HTTP, and its URL."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            self._told(None)

        def do_POST(self) -> None:
            self._told(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _told(self, body: Any) -> None:
            status, said = engine.answer(self.path, body)
            if engine.away:
                status, said = 503, {}
            elif engine.api_key is not None and self.headers.get("Authorization") != f"Bearer {engine.api_key}":
                status, said = 401, {"error": "Unauthorized"}
            text = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.answer(status, text, Content_Type="application/json")

    with listening(Handler) as port:
        yield f"http://127.0.0.1:{port}"
