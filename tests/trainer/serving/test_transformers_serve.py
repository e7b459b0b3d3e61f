"""A real `transformers serve` behind its front: it answers as OpenAI's clients expect, and what it can't do is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tests.listening import free_ports
from tests.trainer.serving.fronts import KEY, NAME, caller, front, refused, said, started
from tests.waiting import wait_for_server

from finetune_operator.modelserve.engines import engine, transformers
from finetune_trainer.contract.manners import Manners
from finetune_trainer.contract.pod import ENV_API_KEY

pytestmark = pytest.mark.slow
CONTEXT = 200
IMPORT_SECONDS = 240.0  # torch and transformers are read by a process of their own


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[OpenAI]:
    """A client of the front, with its key. Both are started as in a pod, but for where things lie."""
    folder, (at, behind) = tmp_path_factory.mktemp("served"), free_ports(2)
    (program := folder / "transformers").write_text(f'#!/bin/sh\nexec {sys.executable} -m transformers.cli.transformers "$@"\n')
    program.chmod(0o755)
    script = transformers.SERVE.replace(engine.MODEL, str(tiny_model)).replace("/tmp/served", str(folder / "at"))
    path = f"{folder}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "HOME": str(folder), "HF_HUB_OFFLINE": "1", ENV_API_KEY: KEY}
    serve = ["sh", "-c", script, NAME, "--host", "127.0.0.1", "--port", str(behind), "--device", "cpu"]
    passing = front(at, behind, Manners(model=NAME, lacks=transformers.LACKS), tiny_model, CONTEXT)
    with started([serve, passing], variables, folder / "log") as processes:
        wait_for_server(processes[0], f"127.0.0.1:{behind}", "/health", IMPORT_SECONDS)
        wait_for_server(processes[1], f"127.0.0.1:{at}", "/health")
        yield caller(at)


def test_it_answers_plainly_and_as_a_stream_under_its_name(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    plain = client.chat.completions.create(model=NAME, messages=said("Hi"), max_tokens=8, temperature=0)
    assert plain.model.partition("@")[0] == NAME
    assert plain.choices[0].message.content
    pieces = client.chat.completions.create(
        model=NAME, messages=said("Hi"), max_completion_tokens=8, temperature=0, stream=True
    )
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == plain.choices[0].message.content
    assert client.completions.create(model=NAME, prompt="abc", max_tokens=2).usage is not None


def test_prompt_and_answer_have_the_promised_context_and_no_more(client: OpenAI) -> None:
    long = client.chat.completions.create(model=NAME, messages=said("word " * 20), temperature=0)
    assert long.usage is not None
    assert long.usage.total_tokens == CONTEXT, "the tiny model never ends its answers"
    assert refused(client, messages=said("word " * CONTEXT)) == (400, "messages")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"model": "another"}, (404, "model")),
        ({"messages": said([{"type": "image_url", "image_url": {"url": "data:,"}}])}, (400, "messages")),
        ({"n": 2}, (400, "n")),
        ({"response_format": {"type": "json_object"}}, (400, "response_format")),
        ({"extra_body": {"top_k": 5}}, (422, None)),
    ],
)
def test_what_it_would_do_wrongly_is_refused(client: OpenAI, asked: dict[str, Any], expected: tuple[int, str | None]) -> None:
    assert refused(client, **asked) == expected


def test_nobody_comes_without_the_key(client: OpenAI) -> None:
    assert refused(client.with_options(api_key="wrong")) == (401, None)
