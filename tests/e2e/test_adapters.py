"""Adapters over a base model that serves: they come, follow each other and go in pods that run, under traffic that never stops.

vLLM is a real one, on CPUs. The base model is the small job's; adapters are trained over it and, to be refused, over another.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest
from demo.follow import is_true
from demo.kubectl import Object
from openai import NotFoundError, OpenAI
from openai.types.chat import ChatCompletionUserMessageParam
from tests.e2e import jobs, serves
from tests.e2e.serves import traffic
from tests.e2e.space import SERVE, Space
from tests.waiting import wait_until

pytestmark = [pytest.mark.space(serves.SHARED), pytest.mark.images("serve-vllm")]
NAME = "shared"
QUESTION: ChatCompletionUserMessageParam = {"role": "user", "content": "What is the capital of Velmora?"}


def lora(name: str, base: str, steps: int = 20) -> Object:
    """A job that trains an adapter, and keeps it on a claim of its own; what the adapter has learned is of no account."""
    training = {"method": "LoRA", "learningRate": 0.01, "maxSteps": steps, "globalBatchSize": 8, "maxLength": 128}
    any_loss = {"maxNewTokens": 8, "gates": [{"name": "trained", "metric": "loss", "max": 100}]}
    return jobs.job(name, model={"uri": base}, training=training, evaluation=any_loss)


def shared(*adapters: Object, **spec: object) -> Object:
    """The base model, with room for adapters, and these of them."""
    fields = {
        "model": {"jobRef": {"name": jobs.SMALL["metadata"]["name"], "artifact": "merged"}},
        "engine": {"type": "VLLM", "maxModelLength": 512, "args": ["--max-num-seqs", "8"]},
        "lora": {"claims": ["tickets-artifacts", "stranger-artifacts"]},
        "parallelism": {"gpus": False},
        "resources": {"requests": {"cpu": "250m", "memory": "2Gi"}, "limits": {"memory": "6Gi"}},
        "drain": {"seconds": 10},
        "rollout": {"rollbackWindowSeconds": 0, "startupTimeoutSeconds": 900},
        "adapters": list(adapters),
    }
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "ModelServe", "metadata": {"name": NAME}, "spec": fields | spec}


def adapter(found: Object, name: str = "tickets") -> Object:
    return next((a for a in found["status"].get("adapters", []) if a["name"] == name), {})


def stands(state: str, name: str = "tickets", digest: str | None = None) -> Callable[[Object], bool]:
    """Whether an adapter has this state, and is this one."""

    def is_so(found: Object) -> bool:
        told = adapter(found, name)
        return told.get("state") == state and digest in (None, told.get("digest"))

    return is_so


def artifact(job: Object, name: str) -> Object:
    found: Object = next(a for a in job["status"]["artifacts"] if a["name"] == name)
    return found


def names(space: Space) -> list[str]:
    with space.kubectl.forward(NAME, space.name, 8000) as port:
        return [m.id for m in OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none").models.list()]


def test_adapters(space: Space, small_job: Object) -> None:
    base = artifact(small_job, "merged")["uri"]
    space.apply(lora("tickets", base), lora("stranger", f"hf://{jobs.TINY}"))
    first, stranger = (artifact(space.succeeded(name), "adapter") for name in ("tickets", "stranger"))
    begun = time.monotonic()
    space.apply(shared())
    live = space.until(SERVE, NAME, "is Ready", lambda s: is_true(s, "Ready"))["status"]["live"]["name"]
    print(f"the base model serves after {time.monotonic() - begun:.0f} s")

    tickets = {"name": "tickets", "jobRef": {"name": "tickets"}}
    bad = {"name": "stranger", "uri": stranger["uri"], "digest": stranger["digest"]}
    with traffic(space, NAME) as of_base:
        begun = time.monotonic()
        space.apply(shared(tickets))
        found = space.until(SERVE, NAME, "has an adapter", stands("Live"))
        print(f"the adapter answers after {time.monotonic() - begun:.0f} s, and no pod was started for it")
        rows = adapter(found)["testRows"]
        assert (rows["asked"], rows["sameTokenIds"]) == (8, 8)
        assert rows["sameAnswers"] >= 6, "vLLM answers with the adapter as the evaluation saw the merged model answer"
        with traffic(space, NAME, "tickets") as of_adapter:
            _refuses(space, tickets, bad)
            _follows(space, tickets, base, first["digest"])
            _again_in_new_pods(space, tickets, live)
        space.apply(shared(replicas=2))
        wait_until("the name leads nowhere", lambda: "tickets" not in names(space), 180)
        _out_of_reach(space)
    for report in (of_base, of_adapter):
        assert report["failures"] == []
        assert sorted(report["callers"]) == ["fresh plain", "fresh stream", "kept plain", "kept stream"]
    assert len(of_adapter["revisions"]) == 2, "two adapters have answered to the name"
    space.delete(SERVE, NAME)


def _refuses(space: Space, tickets: Object, bad: Object) -> None:
    """One that was trained over another base model is refused alone, by every pod, before the engine sees it."""
    space.apply(shared(tickets, bad))
    found = space.until(SERVE, NAME, "has refused it", stands("Refused", "stranger"))
    told = adapter(found, "stranger")
    assert (told["reason"], "live" in told) == ("AdapterOfAnotherBase", False)
    assert f"it was trained over {jobs.TINY}" in told["message"]
    assert is_true(found, "Ready")
    assert is_true(found, "Available")
    assert adapter(found)["state"] == "Live"


def _follows(space: Space, tickets: Object, base: str, first: str) -> None:
    """The job trains anew: its next adapter takes the name once it has passed, and the one before serves until then."""
    space.apply(shared(tickets), lora("tickets", base, steps=30))
    second = artifact(space.succeeded("tickets"), "adapter")["digest"]
    assert second != first
    found = space.until(SERVE, NAME, "has the next adapter", stands("Live", digest=second))
    assert adapter(found)["live"]["digest"] == second


def _again_in_new_pods(space: Space, tickets: Object, live: str) -> None:
    """A second pod, one that is deleted, and an engine that ends: none takes traffic before it has the adapter."""
    space.apply(shared(tickets, replicas=2))
    found = space.until(SERVE, NAME, "has two pods", lambda s: s["status"].get("replicas") == 2)
    assert found["status"]["live"]["name"] == live
    pods = sorted(p["metadata"]["name"] for p in space.items("pod", f"finetune.dev/serve={NAME},finetune.dev/revision"))
    space.delete("pod", pods[0], "--wait=false")
    wait_until("another has taken its place", lambda: ready(space) - set(pods) and len(ready(space)) == 2, 600)


def ready(space: Space) -> set[str]:
    """Names of the pods that serve."""
    pods = space.items("pod", f"finetune.dev/serve={NAME},finetune.dev/revision")
    return {p["metadata"]["name"] for p in pods if is_true(p, "Ready") and "deletionTimestamp" not in p["metadata"]}


def _out_of_reach(space: Space) -> None:
    """Neither the engine's own API for adapters, nor its port, nor a name that leads nowhere."""
    with space.kubectl.forward(NAME, space.name, 8000) as port:
        url = f"http://127.0.0.1:{port}/v1"
        for path in ("load_lora_adapter", "unload_lora_adapter"):
            request = urllib.request.Request(f"{url}/{path}", b"{}", {"Content-Type": "application/json"})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            assert refused.value.code == 404
        with pytest.raises(NotFoundError, match="tickets"):
            OpenAI(base_url=url, api_key="none").chat.completions.create(model="tickets", messages=[QUESTION], max_tokens=4)
    pod = space.items("pod", f"finetune.dev/serve={NAME},finetune.dev/revision")[0]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{pod['status']['podIP']}:8081/health", timeout=5)
