"""An engine behind its front, both started as in a pod, and what a caller is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from finetune_trainer.contract.manners import Manners

NAME, KEY = "team/facts", "s3cret"


def front(at: int, behind: int, manners: Manners, folder: Path, context: int) -> list[str]:
    """The command of the front at port `at`, before an engine that serves what lies in `folder`."""
    command = [sys.executable, "-m", "finetune_trainer.serving.front", "--port", str(at), "--drain", "0"]
    command += ["--engine", f"http://127.0.0.1:{behind}", "--manners", manners.model_dump_json(by_alias=True)]
    return [*command, "--folder", str(folder), "--context", str(context)]


@contextmanager
def started(commands: Sequence[list[str]], variables: dict[str, str], log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that end with the block; what they print lies in `log`."""
    with log.open("w") as out:
        processes = [subprocess.Popen(command, env=variables, stdout=out, stderr=out) for command in commands]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def caller(at: int) -> OpenAI:
    """A client of the front at this port, with its key."""
    return OpenAI(base_url=f"http://127.0.0.1:{at}/v1", api_key=KEY, max_retries=0)


def said(text: Any) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def refused(client: OpenAI, **asked: Any) -> tuple[int, str | None]:
    """Status and field of a refusal."""
    with pytest.raises(APIStatusError) as found:
        client.chat.completions.create(**{"model": NAME, "messages": said("Hi"), "max_tokens": 4, **asked})
    return found.value.status_code, found.value.param
