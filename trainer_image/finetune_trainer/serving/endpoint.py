"""The OpenAI API of one served model, as a gate asks it; what goes wrong is a StepFailed that says whether to ask again."""

from __future__ import annotations

import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed, first_line
from finetune_trainer.serving import speed
from finetune_trainer.serving.compare import Completion
from finetune_trainer.serving.speed import Streamed


@dataclass(frozen=True)
class Endpoint:
    url: str
    model: str
    max_tokens: int
    quoted: bool = True  # whether the server's own words may be told: they may repeat what it was asked
    api_key: str | None = field(default=None, repr=False)

    def served(self, seconds: float) -> list[str]:
        """Names of the models that it serves."""
        return [str(m["id"]) for m in self._json("/v1/models", None, seconds)["data"]]

    def context(self, seconds: float) -> int | None:
        """The longest context in tokens, prompt and answer together; None where the engine does not say."""
        model = next(m for m in self._json("/v1/models", None, seconds)["data"] if m["id"] == self.model)
        found: int | None = model.get("max_model_len") or (model.get("meta") or {}).get("n_ctx")  # vLLM's word; llama.cpp's
        return found

    def answer(self, prompt: str, seconds: float) -> str:
        """The answer to one user's message, greedy, so that a gate judges the same way twice."""
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        found = self._json("/v1/chat/completions", request, seconds)
        return str(found["choices"][0]["message"].get("content") or "")

    def token_ids(self, text: str, special_tokens: bool, seconds: float) -> list[int]:
        """What the server's tokenizer makes of a text, in which special tokens are read as such."""
        vllm = {"model": self.model, "prompt": text, "add_special_tokens": special_tokens}
        llamacpp = {"content": text, "add_special": special_tokens, "parse_special": True}
        # Each passes over the other's words.
        return [int(token) for token in self._json("/tokenize", {**vllm, **llamacpp}, seconds)["tokens"]]

    def completion(self, tokens: Sequence[int], longest: int, seconds: float) -> Completion:
        """The greedy continuation of these token ids; the server adds none to them."""
        request = {
            "model": self.model,
            "prompt": list(tokens),
            "max_tokens": longest,
            "temperature": 0,
            "repeat_penalty": 1.0,  # llama.cpp's word alone: a GGUF file may carry another, and evaluation has none
            **_afresh(),
        }
        found = self._json("/v1/completions", request, seconds)["choices"][0]
        return Completion(str(found["text"]), found["finish_reason"] == "length")

    def stream(self, prompt: str, seconds: float) -> Streamed | None:
        """The answer to one user's message as it comes in; None where it is empty."""
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        begun = time.monotonic()
        with self._opened("/v1/chat/completions", request, seconds) as response:
            return speed.streamed(response, begun)

    def _json(self, path: str, body: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        with self._opened(path, body, seconds) as response:
            found: dict[str, Any] = json.load(response)
            return found

    @contextmanager
    def _opened(self, path: str, body: dict[str, Any] | None, seconds: float) -> Iterator[Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.url.removesuffix("/v1") + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=max(1.0, seconds)) as response:
                yield response
        except urllib.error.HTTPError as error:
            said = _said(error)
            text = f"{path} answered HTTP {error.code}: {said if self.quoted else error.reason}"
            if error.code in (429, 502, 503, 504):
                raise StepFailed(StepReason.EngineUnavailable, text) from error
            raise StepFailed(StepReason.GateFailed, text) from error
        except TimeoutError as error:
            raise too_slow() from error
        except OSError as error:
            if isinstance(getattr(error, "reason", None), TimeoutError):
                raise too_slow() from error
            text = f"{request.full_url} can't be reached: {first_line(error)}"
            raise StepFailed(StepReason.EngineUnavailable, text) from error


def _afresh() -> dict[str, Any]:
    """What has a prompt computed as a whole, whatever was asked before: one whose beginning is in an engine's cache is computed
    in other pieces, rounds otherwise, and may get another answer. The words are vLLM's and llama.cpp's; each passes over the
    other's.
    """
    return {"cache_salt": secrets.token_hex(8), "cache_prompt": False}


def too_slow() -> StepFailed:
    """What was asked took longer than the gate has."""
    text = "the prompts were not answered in time; raise spec.rollout.gate.timeoutSeconds or lower maxTokens"
    return StepFailed(StepReason.GateTimeout, text)


def _said(error: urllib.error.HTTPError) -> str:
    """The server's own message, whatever its shape."""
    try:
        found = json.load(error)
        return str(found.get("message") or found["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError, AttributeError):
        return error.reason
