"""A conversation with a served model, through a port that kubectl forwards: NetworkPolicies and API keys are no hindrance."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from finetune_operator.cli.status import conditions, serve_status
from finetune_operator.errors import NotPossible
from finetune_operator.meta import Object
from finetune_operator.modelserve.objects import PORT

FORWARDED = "Forwarding from 127.0.0.1:"  # what kubectl says once the port is open


@contextmanager
def forwarded(serve: Object, context: str | None) -> Iterator[int]:
    """A local port that leads to the ModelServe's Service. Raises NotPossible with kubectl's own words."""
    metadata = serve["metadata"]
    target = ["--namespace", metadata["namespace"], *(["--context", context] if context else [])]
    command = ["kubectl", *target, "port-forward", f"service/{metadata['name']}", f":{PORT}", "--address", "127.0.0.1"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise NotPossible(f"kubectl can't be started: {error.strerror}; it must be on the PATH") from None
    with process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            said = process.stdout.readline()
            if not said.startswith(FORWARDED):
                raise NotPossible(f"kubectl port-forward failed: {' '.join((said + process.stderr.read()).split())}")
            yield int(said.removeprefix(FORWARDED).split()[0])
        finally:
            process.terminate()


def model_of(serve: Object) -> str:
    """The name by which the API knows the model. Raises NotPossible where nothing answers yet."""
    if "Available" not in conditions(serve):
        raise NotPossible(f"no revision of {serve['metadata']['name']} answers; kubectl finetune watch mserve/NAME tells why")
    return serve_status(serve).served_name or str(serve["metadata"]["name"])


@dataclass
class Chat:
    """Messages so far, and where the next one goes. `tell` gets the pieces of an answer as they come."""

    url: str
    model: str
    api_key: str | None
    max_tokens: int
    tell: Callable[[str], None]
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> None:
        """One question, with all that was said before it. Raises NotPossible with the server's words."""
        from openai import OpenAI, OpenAIError

        client = OpenAI(base_url=self.url, api_key=self.api_key or "none", max_retries=0)
        asked: Any = [*self.messages, {"role": "user", "content": question}]
        answer = ""
        try:
            pieces = client.chat.completions.create(
                model=self.model,
                messages=asked,
                max_tokens=self.max_tokens,
                stream=True,
            )
            for piece in pieces:
                text = (piece.choices[0].delta.content if piece.choices else None) or ""
                answer += text
                self.tell(text)
        except OpenAIError as error:
            raise NotPossible(f"the model did not answer: {error}") from None
        self.tell("\n")
        self.messages = [*asked, {"role": "assistant", "content": answer}]
