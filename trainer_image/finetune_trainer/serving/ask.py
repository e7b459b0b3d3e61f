"""Ask a served model its prompts and judge the answers: the gate that a new revision passes before it takes traffic.

    python -m finetune_trainer.serving.ask --url http://host:8000/v1 --model NAME --prompts FILE [--rows URI]

FILE is a JSON list of {"prompt": …, "expect": …}; an answer must have text in it and contain `expect` where it is given.
URI is the entry of an evaluation in an artifact store: a few of its test rows are asked again and compared with what it saw
(contract/served_rows.py says what that proves). The report has numbers of these rows, never text.
A wrong answer ends with ExitCode VERIFICATION_FAILED; an engine that can't be reached with SOURCE_UNAVAILABLE, which may
be tried again. It doesn't wait: what it asks is ready.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_trainer import environment
from finetune_trainer.contract import served_rows
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Failure, Termination
from finetune_trainer.contract.served_rows import AskedRow
from finetune_trainer.failures import StepFailed, first_line
from finetune_trainer.serving import compare
from finetune_trainer.serving.compare import Compared, Completion
from finetune_trainer.store.entries import open_store
from finetune_trainer.termination import finish

SHOWN = 160  # characters of an answer


@dataclass(frozen=True)
class Prompt:
    prompt: str
    expect: str | None = None


def main(arguments: list[str] | None = None) -> int:
    """Ask as the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.serving.ask", description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="the OpenAI API, up to and with /v1")
    parser.add_argument("--model", required=True, help="name that it must serve")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON file with the prompts")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer in tokens")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for all answers, and again for all rows")
    parser.add_argument("--rows", help="uri of an evaluation's entry in an artifact store")
    parser.add_argument("--count", type=int, default=served_rows.ROWS, help="rows that are asked at most")
    parser.add_argument("--min-equal", type=float, default=0.5, help="share of the rows that must be answered alike")
    parser.add_argument("--endpoint", help="URL of an S3-compatible server")
    parser.add_argument("--region", help="region of the bucket")
    options = parser.parse_args(arguments)

    def program() -> Termination | None:
        prompts = [Prompt(**p) for p in json.loads(options.prompts.read_text(encoding="utf-8"))]
        key = environment.access().served_api_key
        endpoint = Endpoint(options.url.rstrip("/"), options.model, options.max_tokens, api_key=key)
        ask_all(endpoint, prompts, time.monotonic() + options.timeout)
        if options.rows is None:
            return None
        rows = read_rows(StoreConfig(uri=options.rows, endpoint=options.endpoint, region=options.region))
        compared = ask_rows(endpoint, rows, options.count, time.monotonic() + options.timeout)
        wrong = compare.mistake(compared, options.min_equal)
        failure = None if wrong is None else Failure(reason=StepReason.VerificationFailed, message=wrong)
        return Termination(failure=failure, served_rows=compare.told(compared))

    return finish(program)


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
        }
        found = self._json("/v1/completions", request, seconds)["choices"][0]
        return Completion(str(found["text"]), found["finish_reason"] == "length")

    def _json(self, path: str, body: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.url.removesuffix("/v1") + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=max(1.0, seconds)) as response:
                found: dict[str, Any] = json.load(response)
                return found
        except urllib.error.HTTPError as error:
            said = _said(error)
            text = f"{path} answered HTTP {error.code}: {said if self.quoted else error.reason}"
            if error.code in (429, 502, 503, 504):
                raise StepFailed(StepReason.EngineUnavailable, text) from error
            raise StepFailed(StepReason.GateFailed, text) from error
        except TimeoutError as error:
            raise _too_slow() from error
        except OSError as error:
            if isinstance(getattr(error, "reason", None), TimeoutError):
                raise _too_slow() from error
            text = f"{request.full_url} can't be reached: {first_line(error)}"
            raise StepFailed(StepReason.EngineUnavailable, text) from error


def ask_all(endpoint: Endpoint, prompts: list[Prompt], deadline: float) -> None:
    """Ask everything, print every answer, then judge. Raises StepFailed GateFailed with the first wrong answer.

    `deadline` is on the monotonic clock.
    """
    served = endpoint.served(deadline - time.monotonic())
    if endpoint.model not in served:
        text = f"the engine serves {', '.join(served) or 'nothing'}, not {endpoint.model}"
        raise StepFailed(StepReason.ModelNotServed, text)
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
        raise StepFailed(StepReason.GateFailed, text)


def read_rows(entry: StoreConfig) -> list[AskedRow]:
    """The rows that an evaluation keeps to be asked again; entry.uri ends in evaluate/<fingerprint>.

    Raises StepFailed RowsNotFound, RowsDamaged or RowsAccessDenied.
    """
    root, kind, fingerprint = entry.uri.rsplit("/", 2)
    store = open_store(entry.model_copy(update={"uri": root}), environment.read().mounts)
    try:
        manifest = store.read(kind, fingerprint)
        files = [file for file in manifest.files if file.path == served_rows.FILE] if manifest else []
        if manifest is None or not files:
            text = f"{entry.uri} holds no {served_rows.FILE}; run the job again, or set spec.rollout.gate.testRows.count to 0"
            raise StepFailed(StepReason.RowsNotFound, text)
        with tempfile.TemporaryDirectory() as scratch:
            folder = store.objects.fetch(store.path(kind, manifest), files, Path(scratch))
            lines = (folder / served_rows.FILE).read_text(encoding="utf-8").split("\n")
        return [AskedRow.model_validate_json(line) for line in lines if line]
    except ValidationError:  # whose words are the row's
        text = f"{served_rows.FILE} of {entry.uri} is damaged; remove that folder, and run the job again"
        raise StepFailed(StepReason.RowsDamaged, text) from None
    except StepFailed as error:
        if error.reason is not StepReason.StoreAccessDenied:
            raise
        text = f"{entry.uri} was refused: give the keys in the Secret of the model's store the right to read it"
        raise StepFailed(StepReason.RowsAccessDenied, text) from error


def ask_rows(endpoint: Endpoint, rows: Sequence[AskedRow], count: int, deadline: float) -> list[Compared]:
    """Ask at most `count` test rows until `deadline`, on the monotonic clock.

    Rows that are longer than the engine's context, or that time does not suffice for, are left out. Raises StepFailed
    GateTimeout where it suffices for none.
    """
    compared: list[Compared] = []
    silent = replace(endpoint, quoted=False)
    context = silent.context(deadline - time.monotonic())
    fitting = [row for row in rows if context is None or len(row.asked_ids) + row.max_tokens <= context]
    for row in fitting[:count]:
        begun = time.monotonic()
        try:
            found = _compare(silent, row, deadline)
        except StepFailed as error:
            if error.reason is StepReason.GateTimeout and compared:
                break
            text = f"test row {row.row}: {error.message}; spec.rollout.gate.testRows.count 0 asks none"
            raise StepFailed(error.reason, text) from error
        compared.append(found)
        said = f"{'same' if found.same_token_ids else 'other'} token ids, {'same' if found.same_answer else 'other'} answer"
        print(f"test row {row.row}: {said}, {time.monotonic() - begun:.1f} s", flush=True)
    print(f"{len(compared)} of {len(rows)} test rows were asked", flush=True)
    return compared


def _compare(endpoint: Endpoint, row: AskedRow, deadline: float) -> Compared:
    if (left := deadline - time.monotonic()) <= 0:
        raise _too_slow()
    ids = endpoint.token_ids(row.prompt, row.special_tokens, left)
    completion = endpoint.completion(row.asked_ids, row.max_tokens, deadline - time.monotonic())
    return Compared(row.row, tuple(ids) == row.prompt_ids, compare.is_same_answer(row, completion))


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
    return StepFailed(StepReason.GateTimeout, text)


def _said(error: urllib.error.HTTPError) -> str:
    """The server's own message, whatever its shape."""
    try:
        found = json.load(error)
        return str(found.get("message") or found["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError, AttributeError):
        return error.reason


if __name__ == "__main__":
    sys.exit(main())
