"""A real Ollama behind its front, started as in a pod: it answers as OpenAI's clients expect, and what it can't do is refused.

It is the program that `make e2e K=engines` puts into its image; where that was never built, there is nothing to try here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from localcluster import settings, toolchain
from openai import OpenAI
from tests.listening import free_ports
from tests.trainer.pods import need_llama_cpp
from tests.trainer.serving.fronts import KEY, NAME, caller, front, refused, said, started
from tests.waiting import wait_for_server, wait_until

from finetune_operator.modelserve.engines import ollama
from finetune_trainer.contract.pod import ENV_API_KEY
from finetune_trainer.export import llamacpp

pytestmark = pytest.mark.slow
CONTEXT = 256
CONVERTER = "convert_hf_to_gguf.py"
MODELFILE = """FROM ./facts.gguf
TEMPLATE \"\"\"{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system
{{ .Content }}<|im_end|>
{{ end }}{{ if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ end }}{{ if eq .Role "assistant" }}<|im_start|>assistant
{{ .Content }}<|im_end|>
{{ end }}{{ end }}<|im_start|>assistant
\"\"\"
SYSTEM Be kind.
PARAMETER stop "<|im_end|>"
"""


@pytest.fixture(scope="module")
def program() -> Path:
    need_llama_cpp(CONVERTER)
    found = toolchain.built_at(settings.read().cache, toolchain.PROGRAMS["ollama"])
    if not found.exists():
        pytest.skip(f"{found} is not built: `make e2e K=engines` does it")
    return found


@pytest.fixture(scope="module")
def client(program: Path, tmp_path_factory: pytest.TempPathFactory, tiny_smollm: Path) -> Iterator[OpenAI]:
    """A client of the front, with its key. Both are started as in a pod, but for where things lie."""
    folder, (at, behind) = tmp_path_factory.mktemp("served"), free_ports(2)
    (folder / "model").mkdir()
    (folder / "model/Modelfile").write_text(MODELFILE)
    (folder / "model/facts.gguf").symlink_to(folder / "model.gguf")  # by it the front knows that a Modelfile tells of the model
    convert = [sys.executable, str(llamacpp.folder() / CONVERTER), str(tiny_smollm), "--outtype", "f16"]
    subprocess.run([*convert, "--outfile", str(folder / "model.gguf")], check=True, capture_output=True)
    path = f"{program.parent}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "HOME": str(folder), ENV_API_KEY: KEY, **ollama.environment(behind)}
    variables["OLLAMA_MODELS"] = str(folder / "store")
    serve = ["sh", "-c", ollama.SERVE.replace("/mnt/model", str(folder)), NAME, str(CONTEXT), "1"]
    passing = front(at, behind, ollama.MANNERS.model_copy(update={"model": NAME}), folder / "model", CONTEXT)
    with started([serve, passing], variables, folder / "log") as processes:
        made = ["sh", "-c", ollama.IS_MADE, f"http://127.0.0.1:{behind}", NAME]
        wait_until("the model is in memory", lambda: subprocess.run(made, env=variables, check=False).returncode == 0, 120)
        wait_for_server(processes[1], f"127.0.0.1:{at}", "/health")
        yield caller(at)


def test_it_answers_plainly_and_as_a_stream_under_its_name(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    plain = client.chat.completions.create(model=NAME, messages=said("Hi"), max_tokens=8, temperature=0)
    assert plain.model == NAME
    assert plain.choices[0].message.content
    pieces = client.chat.completions.create(
        model=NAME, messages=said("Hi"), max_completion_tokens=8, temperature=0, stream=True
    )
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == plain.choices[0].message.content


def test_completions_go_on_with_the_text_alone(client: OpenAI) -> None:
    found = client.completions.create(model=NAME, prompt="one two three", max_tokens=2, temperature=0)
    asked = client.chat.completions.create(model=NAME, messages=said("one two three"), max_tokens=2, temperature=0)
    assert found.usage is not None
    assert asked.usage is not None
    assert found.usage.prompt_tokens < asked.usage.prompt_tokens, "the chat template is around a message only"


def test_prompt_and_answer_have_the_promised_context_and_no_more(client: OpenAI) -> None:
    long = client.chat.completions.create(model=NAME, messages=said("word " * 100), temperature=0)
    assert long.usage is not None
    assert long.usage.total_tokens <= CONTEXT
    assert refused(client, messages=said("word " * CONTEXT)) == (400, "messages")
    turns = [said("word " * 90)[0], {"role": "assistant", "content": "word " * 90}, said("word " * 90)[0]]
    assert refused(client, messages=turns) == (400, "messages"), "not the last turns alone"
    system = [{"role": "system", "content": "word " * 150}, said("word " * 150)[0]]
    assert refused(client, messages=system) == (400, "messages")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"model": "another"}, (404, "model")),
        ({"messages": said([{"type": "image_url", "image_url": {"url": "data:,"}}])}, (400, "messages")),
        ({"n": 2}, (400, "n")),
        ({"messages": [{"role": "developer", "content": "Be kind."}, *said("Hi")]}, (400, "messages")),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "y"}}}}, (400, None)),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, (400, "tools")),
        ({"extra_body": {"top_k": 5}}, (400, "top_k")),
    ],
)
def test_what_it_would_do_wrongly_is_refused(client: OpenAI, asked: dict[str, Any], expected: tuple[int, str | None]) -> None:
    assert refused(client, **asked) == expected


def test_nobody_comes_without_the_key(client: OpenAI) -> None:
    assert refused(client.with_options(api_key="wrong")) == (401, None)
