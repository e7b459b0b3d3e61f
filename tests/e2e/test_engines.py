"""One conversation through each engine that runs on CPUs, and what none of them may answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from demo.kubectl import Object
from openai import APIStatusError, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from tests.e2e import serves
from tests.e2e.serves import live
from tests.e2e.space import Space

pytestmark = [
    pytest.mark.space(serves.SHARED), pytest.mark.usefixtures("small_job"), pytest.mark.images("serve-vllm")
]  # fmt: skip
CONTEXT = 256
MERGED = {"jobRef": {**serves.MODEL["jobRef"], "artifact": "merged"}}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
LLAMA_CPP: Object = {"engine": {"type": "LlamaCpp", "maxModelLength": CONTEXT}}

VLLM: Object = {
    "model": MERGED,
    "engine": {"type": "VLLM", "maxModelLength": CONTEXT, "args": ["--max-num-seqs", "4"]},
    "resources": {"requests": {"cpu": "250m", "memory": "2Gi"}, "limits": {"memory": "6Gi"}},
    "rollout": {"rollbackWindowSeconds": 0, "startupTimeoutSeconds": 900},
}
TRANSFORMERS: Object = {
    "model": MERGED,
    "engine": {"type": "Transformers", "maxModelLength": CONTEXT},
    "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
}
ENGINES = [pytest.param(spec, id=spec["engine"]["type"]) for spec in (LLAMA_CPP, TRANSFORMERS, VLLM)]


@pytest.fixture(params=ENGINES)
def served(space: Space, request: pytest.FixtureRequest) -> Iterator[tuple[OpenAI, str]]:
    """A client of a ModelServe on one engine, and the model's name."""
    name = "asked-" + request.param["engine"]["type"].lower()
    with live(space, name, **request.param):
        service = space.get("service", name)
        assert service is not None
        address = f"http://{service['spec']['clusterIP']}:8000/v1"
        yield OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60.0), name


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
    """The status of an answer that is a refusal."""
    assert callable(ask)
    with pytest.raises(APIStatusError) as refused:
        ask()
    assert refused.value.response.json()["error"]["message"]
    return refused.value.status_code
