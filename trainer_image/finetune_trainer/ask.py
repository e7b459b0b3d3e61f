"""Ask a served model its prompts and judge the answers: the gate that a new revision passes before it takes traffic.

    python -m finetune_trainer.ask --url http://host:8000/v1 --model NAME --prompts FILE

FILE is a JSON list of {"prompt": …, "expect": …}; an answer must have text in it and contain `expect` where it is given.
A wrong answer ends with ExitCode VERIFICATION_FAILED; an engine that can't be reached with SOURCE_UNAVAILABLE, which may
be tried again. It doesn't wait: what it asks is ready.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.contract import ExitCode
from finetune_trainer.exits import finish
from finetune_trainer.failures import StepFailed, first_line

SHOWN = 160  # characters of an answer


@dataclass(frozen=True)
class Prompt:
    prompt: str
    expect: str | None = None


def main(arguments: list[str] | None = None) -> int:
    """Ask as the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.ask", description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="the OpenAI API, up to and with /v1")
    parser.add_argument("--model", required=True, help="name that it must serve")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON file with the prompts")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer in tokens")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for all answers together")
    options = parser.parse_args(arguments)

    def program() -> None:
        prompts = [Prompt(**p) for p in json.loads(options.prompts.read_text(encoding="utf-8"))]
        endpoint = Endpoint(options.url.rstrip("/"), options.model, options.max_tokens)
        ask_all(endpoint, prompts, time.monotonic() + options.timeout)

    return finish(program)


@dataclass(frozen=True)
class Endpoint:
    url: str
    model: str
    max_tokens: int

    def served(self, seconds: float) -> list[str]:
        """Names of the models that it serves."""
        return [str(m["id"]) for m in self._json("/models", None, seconds)["data"]]

    def answer(self, prompt: str, seconds: float) -> str:
        """The answer to one user's message, greedy, so that a gate judges the same way twice."""
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        found = self._json("/chat/completions", request, seconds)
        return str(found["choices"][0]["message"].get("content") or "")

    def _json(self, path: str, body: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=max(1.0, seconds)) as response:
                found: dict[str, Any] = json.load(response)
                return found
        except urllib.error.HTTPError as error:
            text = f"{path} answered HTTP {error.code}: {_said(error)}"
            if error.code in (429, 502, 503, 504):
                raise StepFailed(ExitCode.SOURCE_UNAVAILABLE, "EngineUnavailable", text) from error
            raise StepFailed(ExitCode.VERIFICATION_FAILED, "GateFailed", text) from error
        except TimeoutError as error:
            raise _too_slow() from error
        except OSError as error:
            if isinstance(getattr(error, "reason", None), TimeoutError):
                raise _too_slow() from error
            text = f"{self.url}{path} can't be reached: {first_line(error)}"
            raise StepFailed(ExitCode.SOURCE_UNAVAILABLE, "EngineUnavailable", text) from error


def ask_all(endpoint: Endpoint, prompts: list[Prompt], deadline: float) -> None:
    """Ask everything, print every answer, then judge. Raises StepFailed GateFailed with the first wrong answer.

    `deadline` is on the monotonic clock.
    """
    served = endpoint.served(deadline - time.monotonic())
    if endpoint.model not in served:
        text = f"the engine serves {', '.join(served) or 'nothing'}, not {endpoint.model}"
        raise StepFailed(ExitCode.VERIFICATION_FAILED, "ModelNotServed", text)
    wrong = []
    for number, prompt in enumerate(prompts, 1):
        if (left := deadline - time.monotonic()) <= 0:
            raise _too_slow()
        begun = time.monotonic()
        answer = endpoint.answer(prompt.prompt, left)
        mistake = judge(prompt, answer)
        verdict = "wrong" if mistake else "right"
        print(f"{number}/{len(prompts)} {verdict} in {time.monotonic() - begun:.1f} s: {answer!r}", flush=True)
        if mistake:
            wrong.append(f"prompt {number} of {len(prompts)} {mistake}")
    if wrong:
        text = f"{len(wrong)} of {len(prompts)} prompts were not answered as spec.rollout.gate.prompts expects: {wrong[0]}"
        raise StepFailed(ExitCode.VERIFICATION_FAILED, "GateFailed", text)


def judge(prompt: Prompt, answer: str) -> str | None:
    """What is wrong with an answer; None where nothing is."""
    if not answer.strip():
        return "got an empty answer"
    if prompt.expect is not None and prompt.expect.casefold() not in answer.casefold():
        shown = textwrap.shorten(answer, SHOWN, placeholder="…")
        return f"expects {prompt.expect!r} and got {shown!r}"
    return None


def _too_slow() -> StepFailed:
    text = "the prompts were not answered in time; raise spec.rollout.gate.timeoutSeconds or lower maxTokens"
    return StepFailed(ExitCode.VERIFICATION_FAILED, "GateTimeout", text)


def _said(error: urllib.error.HTTPError) -> str:
    """The server's own message, whatever its shape."""
    try:
        found = json.load(error)
        return str(found.get("message") or found["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError, AttributeError):
        return error.reason


if __name__ == "__main__":
    sys.exit(main())
