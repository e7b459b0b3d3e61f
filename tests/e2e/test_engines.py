"""One conversation through each engine that runs on CPUs, and what none of them may answer."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.kubectl import Object
from localcluster.settings import NODE_ADDRESS
from openai import APIStatusError, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from tests import redis_server
from tests.e2e import serves
from tests.e2e.serves import address, live
from tests.e2e.space import SERVE, Space
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.space(serves.SHARED), pytest.mark.usefixtures("small_job"), pytest.mark.images("serve-ollama", "serve-vllm")
]  # fmt: skip
CONTEXT, REDIS_PORT = 256, 16379
MERGED = {"jobRef": {**serves.MODEL["jobRef"], "artifact": "merged"}}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
LLAMA_CPP: Object = {"engine": {"type": "LlamaCpp", "maxModelLength": CONTEXT}}

VLLM: Object = {
    "model": MERGED,
    "engine": {"type": "VLLM", "maxModelLength": CONTEXT, "args": ["--max-num-seqs", "4"]},
    "resources": {"requests": {"cpu": "250m", "memory": "2Gi"}, "limits": {"memory": "6Gi"}},
    "rollout": {"rollbackWindowSeconds": 0, "startupTimeoutSeconds": 900},
}
OLLAMA: Object = {
    "engine": {"type": "Ollama", "maxModelLength": CONTEXT},
    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
}
TRANSFORMERS: Object = {
    "model": MERGED,
    "engine": {"type": "Transformers", "maxModelLength": CONTEXT},
    "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
}
ENGINES = [pytest.param(spec, id=spec["engine"]["type"]) for spec in (LLAMA_CPP, OLLAMA, TRANSFORMERS, VLLM)]


@pytest.fixture(params=ENGINES)
def served(space: Space, request: pytest.FixtureRequest) -> Iterator[tuple[OpenAI, str]]:
    """A client of a ModelServe on one engine, and the model's name."""
    name = "asked-" + request.param["engine"]["type"].lower()
    with live(space, name, **request.param):
        yield OpenAI(base_url=f"{address(space, name)}/v1", api_key="none", max_retries=0, timeout=60.0), name


def said(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_engines(served: tuple[OpenAI, str]) -> None:
    """Each answers plainly and as a stream, is listed under the model's name, and refuses what it can't do."""
    client, name = served
    assert [model.id for model in client.models.list()] == [name]
    first = client.chat.completions.create(model=name, messages=said("Hello!"), max_tokens=8, temperature=0)
    assert first.choices[0].message.content
    pieces = client.chat.completions.create(model=name, messages=said("Hello!"), max_tokens=8, temperature=0, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == first.choices[0].message.content

    assert status(lambda: client.chat.completions.create(model="another", messages=said("Hello!"))) == 404
    assert status(lambda: client.embeddings.create(model=name, input="Hello!")) in (400, 404)
    picture = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    asked = {"messages": [{"role": "user", "content": picture}], "model": name, "max_tokens": 8}
    assert status(lambda: client.post("/chat/completions", body=asked, cast_to=object)) == 400
    long = "word " * 2 * CONTEXT
    assert status(lambda: client.chat.completions.create(model=name, messages=said(long), max_tokens=8)) == 400


def status(ask: object) -> int:
    """The status of a refusal, in OpenAI's words; vLLM, which has no front, has its own where it has no route."""
    assert callable(ask)
    with pytest.raises(APIStatusError) as refused:
        ask()
    told = refused.value.response.json()
    assert told["error"]["message"] if "error" in told else told["detail"]
    return refused.value.status_code


# ── Cache ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_response_cache(space: Space, tmp_path: Path) -> None:
    """A real Redis on the node: an answer is given again, not by the next revision, and without Redis the engine answers."""
    cache = {"responseCache": {"secretRef": {"name": "redis"}, "ttlSeconds": 600}}
    with redis_server.started(tmp_path, NODE_ADDRESS, REDIS_PORT) as redis:
        space.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis"}, "stringData": {"url": redis.url}})
        with live(space, "keeping", **cache) as first:
            for stream in (False, True):
                assert [asked(space, stream)[0] for _ in range(2)] == ["miss", "hit"]
                assert asked(space, stream) == asked(space, stream)
            space.apply(serves.serve("keeping", **cache, engine=serves.context(640)))
            space.until(SERVE, "keeping", "serves anew", serves.serves_another(first))
            wait_until("the next revision answers by itself", lambda: asked(space)[0] == "miss")
            assert asked(space)[0] == "hit"
            redis.process.kill()
            redis.process.wait()
            assert asked(space)[0] == "miss"
            text = urllib.request.urlopen(f"{address(space, 'keeping')}/metrics", timeout=10).read().decode()
            assert 'finetune_response_cache_requests_total{result="hit"}' in text


def asked(space: Space, stream: bool = False) -> tuple[str | None, str]:
    """What an answer says of the cache, and the answer."""
    body = {"model": "keeping", "messages": said("Hello!"), "max_tokens": 8, "temperature": 0, "stream": stream}
    url = f"{address(space, 'keeping')}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as found:
        return found.headers["X-Finetune-Cache"], found.read().decode()
