"""vLLM's API for adapters, which it has where VLLM_ALLOW_RUNTIME_LORA_UPDATING is set."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed, first_line

SECONDS = 10.0
LOAD_SECONDS = 300.0  # it may read gigabytes, while it answers others


@dataclass(frozen=True)
class LoraApi:
    """The engine of this pod."""

    url: str
    api_key: str | None = field(default=None, repr=False)

    def loaded(self) -> frozenset[str] | None:
        """Names of the adapters that it has; None where it does not answer."""
        try:
            models = self._ask("/v1/models", None, SECONDS)["data"]
        except (OSError, ValueError, KeyError):
            return None
        return frozenset(str(model["id"]) for model in models if model.get("parent"))

    def load(self, name: str, folder: Path) -> None:
        """Raises StepFailed AdapterRefused with the engine's own words, or EngineUnavailable."""
        try:
            self._ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, LOAD_SECONDS)
        except urllib.error.HTTPError as error:
            text = f"the engine does not take the adapter {name}: {_said(error)}"
            raise StepFailed(StepReason.AdapterRefused, text) from error
        except OSError as error:
            text = f"the engine did not answer when it was to load {name}: {first_line(error)}"
            raise StepFailed(StepReason.EngineUnavailable, text) from error

    def unload(self, name: str) -> None:
        """What it does not have is unloaded already."""
        try:
            self._ask("/v1/unload_lora_adapter", {"lora_name": name}, SECONDS)
            print(f"{name} is unloaded", flush=True)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                print(f"{name} could not be unloaded: {_said(error)}", flush=True)

    def _ask(self, path: str, body: dict[str, Any] | None, seconds: float) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=seconds) as response:
            text = response.read()
        return json.loads(text) if body is None else None  # to what was asked to be done it answers in words


def _said(error: urllib.error.HTTPError) -> str:
    """The engine's own message."""
    try:
        found = json.load(error)
        return str((found.get("error") or found)["message"])[:300]
    except (ValueError, KeyError, TypeError, AttributeError):
        return error.reason
