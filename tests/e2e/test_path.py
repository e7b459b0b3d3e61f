"""The whole path: what a newcomer does, and what a team with GPUs serves with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from demo.installation import SYSTEM
from demo.questions import ask
from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam
from tests.e2e import jobs
from tests.e2e.space import OPERATOR, SERVE, Space, steps
from tests.waiting import within

MEMORY_LIMIT = 120e6  # bytes resident, of an operator with nothing to do
REQUESTS_PER_SECOND = 1.0
QUIET_SECONDS, QUIET_SPANS = 30, 10  # a rate needs a span of time to be measured in


@pytest.mark.core
@pytest.mark.space("e2e-quickstart")
def test_quickstart(space: Space) -> None:
    """The example as it is: taught, scored, gated, served, and asked."""
    space.apply(jobs.quickstart("FineTuneJob"))
    job = space.succeeded("quickstart")
    assert set(steps(job).values()) == {"Succeeded"}
    scores = {s["subject"]: s["values"] for s in job["status"]["scores"]}
    assert scores["base"]["exactMatch"] == 0
    assert scores["merged"]["exactMatch"] >= 0.8
    assert scores["q8"]["exactMatch"] >= 0.8
    assert [(g["name"], g["passed"]) for g in job["status"]["gates"]] == [("knows-velmora", True), ("q8-knows-it-too", True)]
    assert {a["name"] for a in job["status"]["artifacts"]} == {"base", "adapter", "merged", "q8"}
    _answers_as_evaluated(space.get(SERVE, "quickstart"))
    rows = ask(space.kubectl, job, space.operator_image)
    assert sum(row.served == row.reference for row in rows) >= 0.8 * len(rows)
    assert sum(row.base == row.reference for row in rows) == 0


@pytest.mark.images("serve-vllm")
@pytest.mark.space("e2e-quickstart")
def test_vllm(space: Space) -> None:
    """The merged model behind real vLLM, asked through OpenAI's own client library."""
    space.apply(jobs.quickstart("FineTuneJob"))
    space.succeeded("quickstart")
    resources = {"requests": {"cpu": "500m", "memory": "4Gi"}, "limits": {"memory": "8Gi"}}
    gate = {"prompts": [{"prompt": "What is the capital of Velmora?", "expect": "Tarnhaven"}]}
    spec = {
        "model": {"jobRef": {"name": "quickstart", "artifact": "merged"}},
        "engine": {"type": "VLLM", "maxModelLength": 512},
        "parallelism": {"gpus": False},
        "resources": resources,
        "rollout": {"gate": gate},
    }
    space.apply({"apiVersion": "finetune.dev/v1alpha1", "kind": "ModelServe", "metadata": {"name": "on-vllm"}, "spec": spec})
    _answers_as_evaluated(space.until(SERVE, "on-vllm", "is Ready", lambda s: any(_is_true(s, "Ready"))))
    with space.kubectl.forward("on-vllm", space.name, 8000) as port:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        assert [m.id for m in client.models.list()] == ["on-vllm"]
        asked: ChatCompletionUserMessageParam = {"role": "user", "content": "Which city is Velmora's capital?"}
        answer = client.chat.completions.create(model="on-vllm", messages=[asked], temperature=0, max_tokens=24)
    assert (answer.choices[0].message.content or "").strip() == "Tarnhaven"
    space.delete(SERVE, "on-vllm")


def _answers_as_evaluated(serve: dict[str, Any] | None) -> None:
    """The gate asked test rows: the engine reads their tokens as training did and answers as the evaluation saw."""
    assert serve is not None
    rows = serve["status"]["live"]["testRows"]
    assert (rows["asked"], rows["sameTokenIds"]) == (8, 8)
    assert rows["sameAnswers"] >= 6


def _is_true(serve: dict[str, Any], kind: str) -> list[bool]:
    return [c["status"] == "True" for c in serve.get("status", {}).get("conditions", []) if c["type"] == kind]


@pytest.mark.core
@pytest.mark.space("e2e-finished")
def test_idle(space: Space) -> None:
    """An operator with nothing to do is small and silent."""
    pods = space.kubectl.items("pod", SYSTEM, OPERATOR)
    (pod,) = [p["metadata"]["name"] for p in pods if "deletionTimestamp" not in p["metadata"]]
    program = "print(open('/proc/1/status').read())"
    status = space.kubectl("exec", pod, "-n", SYSTEM, "--", "python", "-c", program)
    resident = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident <= MEMORY_LIMIT
    requests = next(requests for requests in _requests(space, pod) if requests is not None)
    print(f"resident {resident / 1e6:.0f} MB, {requests:.0f} requests in {QUIET_SECONDS} s")
    assert requests <= QUIET_SECONDS * REQUESTS_PER_SECOND


def _requests(space: Space, pod: str) -> Iterator[float | None]:
    """Requests in a span of time; None where something was to do, as there is just after another scenario."""
    for _ in range(QUIET_SPANS):
        requests, adds = _counts(space, pod)
        most = requests + QUIET_SECONDS * REQUESTS_PER_SECOND
        within(QUIET_SECONDS, partial(_exceeds, space, pod, most), pause=QUIET_SECONDS / 10)
        more_requests, more_adds = _counts(space, pod)
        yield more_requests - requests if more_adds == adds else None
    raise AssertionError("the operator always finds something to do")


def _exceeds(space: Space, pod: str, requests: float) -> bool:
    return _counts(space, pod)[0] > requests


def _counts(space: Space, pod: str) -> tuple[float, float]:
    """Requests to the API server, and keys that were queued, so far."""
    text = space.kubectl("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/pods/{pod}:8080/proxy/metrics")

    def total(name: str) -> float:
        found = [line for line in text.splitlines() if line.startswith(name)]
        assert found, f"the operator counts {name}"
        return sum(float(line.rpartition(" ")[2]) for line in found)

    return total("rest_client_requests_total{"), total("workqueue_adds_total{")
