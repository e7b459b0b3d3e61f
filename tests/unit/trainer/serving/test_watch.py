"""The watch of a rollback window, against real HTTP servers that count as vLLM and llama.cpp do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.modelserve.engines import ENGINES, EngineType
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pod import ENV_API_KEY, ENV_TERMINATION_LOG
from finetune_trainer.contract.reports import Termination
from finetune_trainer.contract.traffic import Bounds, Counted, Traffic, Watch
from finetune_trainer.serving import watch

VLLM = """\
# HELP http_requests_total Total number of requests by method, status and handler.
# TYPE http_requests_total counter
http_requests_total{{handler="/v1/chat/completions",method="POST",status="2xx"}} {good}
http_requests_total{{handler="/v1/chat/completions",method="POST",status="5xx"}} {bad}
http_requests_total{{handler="/v1/models",method="GET",status="2xx"}} 4000.0
http_requests_total{{handler="/health",method="GET",status="5xx"}} 300.0
# HELP vllm:inter_token_latency_seconds Histogram of inter-token latency in seconds.
# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_bucket{{engine="0",le="+Inf",model_name="facts"}} {tokens}
vllm:inter_token_latency_seconds_count{{engine="0",model_name="facts"}} {tokens}
vllm:inter_token_latency_seconds_sum{{engine="0",model_name="facts"}} {seconds}
"""
LLAMA_CPP = """\
# HELP llamacpp:tokens_predicted_total Number of generation tokens processed.
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total {tokens}
# HELP llamacpp:tokens_predicted_seconds_total Predict process time
# TYPE llamacpp:tokens_predicted_seconds_total counter
llamacpp:tokens_predicted_seconds_total {seconds}
"""
TRANSFORMERS = """\
# TYPE http_requests_total counter
http_requests_total{{handler="/v1/chat/completions",method="POST",status="2xx"}} {good}
http_requests_total{{handler="/v1/chat/completions",method="POST",status="5xx"}} {bad}
# TYPE transformers:inter_token_latency_seconds summary
transformers:inter_token_latency_seconds_count {tokens}
transformers:inter_token_latency_seconds_sum {seconds}
"""
OLLAMA = TRANSFORMERS.replace("transformers:", "ollama:")
PORT_OF = {
    EngineType.VLLM: VLLM,
    EngineType.LLAMA_CPP: LLAMA_CPP,
    EngineType.OLLAMA: OLLAMA,
    EngineType.TRANSFORMERS: TRANSFORMERS,
}


class Pod(ThreadingHTTPServer):
    """An engine that counts as `text` says, at an address of the loopback of its own."""

    def __init__(self, address: str, port: int) -> None:
        super().__init__((address, port), Metrics)
        self.text, self.key = "", ""


class Metrics(BaseHTTPRequestHandler):
    server: Pod

    def do_GET(self) -> None:
        self.server.key = self.headers["Authorization"] or ""
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()
        self.wfile.write(self.server.text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def pods(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Pod]]:
    """Two pods of `new` and one of `old`, whose names stand for their addresses as a Service without an address does."""
    first = Pod("127.0.0.1", 0)
    made = {"a": first, "b": Pod("127.0.0.2", first.server_port), "old": Pod("127.0.0.3", first.server_port)}
    for pod in made.values():
        threading.Thread(target=pod.serve_forever, args=(0.01,), daemon=True).start()
    addresses = {"new": ["127.0.0.1", "127.0.0.2"], "old": ["127.0.0.3"]}

    known = socket.getaddrinfo

    def resolved(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        if host == "nobody":
            raise socket.gaierror(-2, "Name or service not known")
        if host not in addresses:
            return known(host, port, *rest, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    yield made
    for pod in made.values():
        pod.shutdown()
        pod.server_close()


def count(pod: Pod, engine: EngineType = EngineType.VLLM, **counts: float) -> None:
    pod.text = PORT_OF[engine].format(**{"good": 0, "bad": 0, "tokens": 0, "seconds": 0, **counts})


def watched(
    pods: dict[str, Pod], *steps: Callable[[], None], engine: EngineType = EngineType.VLLM, **fields: Any
) -> Termination:
    """The end of a watch in whose pauses these steps happen, one in each; after the last its time is over."""
    bounds = Bounds(**{"max_error_rate": 0.05, "min_requests": 20, "min_tokens": 100, **fields})
    wanted = Watch(
        host="new",
        before="old",
        port=pods["a"].server_port,
        seconds=3600,
        counters=ENGINES[engine].counters,
        bounds=bounds,
    )
    left = iter(steps)

    class Over(Exception):
        pass

    def pause(_: float) -> None:
        step = next(left, None)
        if step is None:
            raise Over
        step()

    try:
        return watch.watch(wanted, "key", pause)
    except Over:
        return Termination()


def test_errors_of_all_pods_since_the_window_opened_end_the_watch(pods: dict[str, Pod]) -> None:
    count(pods["a"], good=1000, bad=900)  # before the window: the gate's, or an earlier promotion's
    count(pods["b"])
    found = watched(
        pods,
        lambda: count(pods["a"], good=1010, bad=900),
        lambda: count(pods["b"], good=8, bad=2),
    )
    assert found.failure is not None
    assert found.failure.reason == "TooManyErrors"
    assert found.failure.message == (
        "2 of 20 requests ended with an error of the engine; spec.rollout.rollbackOn.maxErrorRate bears 0.05"
    )
    assert found.traffic == Traffic(requests=20, errors=2, tokens=0)
    assert pods["a"].key == "Bearer key"


def test_too_little_traffic_is_no_verdict(pods: dict[str, Pod]) -> None:
    count(pods["a"])
    count(pods["b"])
    assert watched(pods, lambda: count(pods["a"], bad=19)).failure is None


def test_a_share_of_errors_that_is_borne(pods: dict[str, Pod]) -> None:
    count(pods["a"])
    count(pods["b"])
    assert watched(pods, lambda: count(pods["a"], good=95, bad=5)).failure is None
    assert watched(pods, lambda: count(pods["a"], good=195, bad=105), max_error_rate=None).failure is None


def test_an_engine_that_began_anew_is_counted_from_nothing(pods: dict[str, Pod]) -> None:
    count(pods["a"], good=500)
    count(pods["b"])
    found = watched(pods, lambda: count(pods["a"], good=10, bad=15))
    assert found.traffic is not None
    assert (found.traffic.requests, found.traffic.errors) == (25, 15)


@pytest.mark.parametrize("engine", list(EngineType))
def test_a_revision_that_is_much_slower_than_the_one_before(pods: dict[str, Pod], engine: EngineType) -> None:
    count(pods["old"], engine, tokens=1000, seconds=20)
    count(pods["a"], engine, tokens=500, seconds=1)
    count(pods["b"], engine)
    steps = [lambda: count(pods["a"], engine, tokens=700, seconds=13.2)]
    assert watched(pods, *steps, engine=engine, max_slowdown=4).failure is None
    count(pods["a"], engine, tokens=500, seconds=1)
    found = watched(pods, *steps, engine=engine, max_slowdown=3)
    assert found.failure is not None
    assert (found.failure.reason, found.traffic) == (
        "SlowedDown",
        Traffic(tokens=200, token_milliseconds=61.0, token_milliseconds_before=20.0),
    )
    assert "a token takes 61 ms, the mean of 200, and took 20 ms in the revision before" in found.failure.message


def test_a_revision_before_that_answered_little_says_nothing_of_latency(pods: dict[str, Pod]) -> None:
    count(pods["old"], tokens=99, seconds=0.1)
    count(pods["a"])
    count(pods["b"])
    assert watched(pods, lambda: count(pods["a"], tokens=700, seconds=700), max_slowdown=1).failure is None


def test_a_pod_that_tells_nothing_counts_nothing(pods: dict[str, Pod]) -> None:
    count(pods["a"])
    pods["b"].text = "<html>"
    found = watched(pods, lambda: count(pods["a"], good=10, bad=10))
    assert found.traffic is not None
    assert found.traffic.requests == 20


def test_the_program_ends_with_the_window_and_tells_its_numbers(
    pods: dict[str, Pod], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_TERMINATION_LOG, str(tmp_path / "termination"))
    monkeypatch.setenv(ENV_API_KEY, "key")
    count(pods["a"])
    count(pods["b"])
    wanted = Watch(
        host="new", port=pods["a"].server_port, seconds=0, counters=ENGINES[EngineType.VLLM].counters, bounds=Bounds()
    )
    assert watch.main(["--watch", wanted.model_dump_json(by_alias=True)]) == ExitCode.OK
    assert Termination.model_validate_json((tmp_path / "termination").read_text()).traffic == Traffic()
    nobody = wanted.model_copy(update={"host": "nobody"})
    assert watch.main(["--watch", nobody.model_dump_json(by_alias=True)]) == ExitCode.OK, "a name without pods is no fault"


def test_growth_over_five_minutes_alone_is_judged(pods: dict[str, Pod], monkeypatch: pytest.MonkeyPatch) -> None:
    count(pods["a"])
    count(pods["b"])
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def at(second: float, good: float, bad: float = 0) -> Callable[[], None]:
        def step() -> None:
            clock[0] = second
            count(pods["a"], good=good, bad=bad)

        return step

    found = watched(pods, at(10, good=1000), at(400, good=1000), at(700, good=1000), at(701, good=1018, bad=2))
    assert found.traffic is not None
    assert (found.traffic.requests, found.traffic.errors) == (20, 2), "a thousand good answers of long ago hide nothing"


def test_counters_grow() -> None:
    assert Counted(requests=5, tokens=3).since(Counted(requests=2, tokens=4)) == Counted(requests=3, tokens=3)
