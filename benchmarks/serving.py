"""What serving through a ModelServe costs, against the bare engine; what the cache gives; what a promotion takes from callers;
how much sooner an adapter answers than a pod that is started anew.

    PYTHONPATH=operator:trainer_image:. python benchmarks/serving.py             all of it, on the local cluster (root)
    PYTHONPATH=operator:trainer_image:. python benchmarks/serving.py BARE URL MODEL    two addresses of one model, as they are

Streams are asked of both by turns, so that what else the machine does falls on both. Ratios of medians: tokens/s at least 0.98,
time to the first token at most 1.05; prompts are of a line, and of a page. On the cluster the bare engine is the pod's own port
behind its front. An adapter is there once it answers by its name, after it was checked and tried; vLLM is a real one, on CPUs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from demo.follow import is_true
from demo.installation import QUICKSTART_IMAGES, install_locally, namespace
from demo.kubectl import Object
from localcluster import settings
from localcluster.settings import NODE_ADDRESS
from tests import redis_server
from tests.e2e import jobs, serves, test_adapters
from tests.e2e.conftest import make_tiny_models
from tests.e2e.space import SERVE, Space
from tests.waiting import wait_until, within

from finetune_operator.modelserve.pod import BEHIND

SPACE, NAME, REDIS_PORT = "benchmark-serving", "measured", 16380
ROUNDS, TOKENS, CALM_SECONDS = 40, 128, 30.0
LINE, PAGE = 1, 24  # sentences of a prompt; a page has about 300 tokens
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Stream:
    """One streamed answer: seconds to its first token, and its tokens in each second after that."""

    first: float
    rate: float


def streamed(url: str, model: str, number: int, sentences: int) -> Stream:
    """Ask for one of TOKENS tokens; the prompts differ, so that no prefix is known from before."""
    messages = [{"role": "user", "content": f"{number}:" + sentences * " tell me all that you know, please."}]
    body = {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    sent = json.dumps({"ignore_eos": True, **body}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", sent, {"Content-Type": "application/json"})
    begun, times = time.perf_counter(), list[float]()
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        for line in answer:
            if b'"content":"' in line.replace(b'": "', b'":"'):
                times.append(time.perf_counter())
    return Stream(times[0] - begun, (len(times) - 1) / (times[-1] - times[0]))


def against(bare: str, url: str, model: str, sentences: int = LINE, rounds: int = ROUNDS) -> dict[str, float]:
    """Medians of both, and their ratios, for prompts of so many sentences; a first round warms both."""
    found: dict[str, list[Stream]] = {bare: [], url: []}
    for number in range(rounds + 1):
        order = (bare, url) if number % 2 else (url, bare)
        for place, at in enumerate(order):
            answer = streamed(at, model, 2 * number + place, sentences)
            if number:
                found[at].append(answer)
    (first, rate), (first_through, rate_through) = (
        (median(s.first for s in found[at]), median(s.rate for s in found[at])) for at in (bare, url)
    )
    return {
        "tokensPerSecondBare": round(rate, 1),
        "tokensPerSecond": round(rate_through, 1),
        "tokensPerSecondRatio": round(rate_through / rate, 3),
        "firstTokenMillisecondsBare": round(1000 * first, 1),
        "firstTokenMilliseconds": round(1000 * first_through, 1),
        "firstTokenRatio": round(first_through / first, 3),
    }


def kept(url: str, model: str, rounds: int = 10) -> dict[str, float]:
    """An answer that nobody has asked for against one that is kept, whole and plain."""
    took: dict[str, list[float]] = {"miss": [], "hit": []}
    for number in range(rounds):
        messages = [{"role": "user", "content": f"{number}: tell me something."}]
        body = json.dumps({"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}).encode()
        for expected in ("miss", "hit"):
            request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
            begun = time.perf_counter()
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                answer.read()
                assert answer.headers["X-Finetune-Cache"] == expected
            took[expected].append(time.perf_counter() - begun)
    return {f"{name}Milliseconds": round(1000 * median(values), 1) for name, values in took.items()}


def promotion(space: Space, engine: Object) -> dict[str, float]:
    """The longest time without an answer to anybody while nothing happens, and while another revision takes over."""
    with serves.traffic(space, NAME) as calm:
        within(CALM_SECONDS, lambda: False, pause=1.0)
    first = (space.get(SERVE, NAME) or {})["status"]["live"]["name"]
    url = serves.address(space, NAME)
    before = serves.reached(url)
    with serves.traffic(space, NAME) as report:
        space.apply(serves.serve(NAME, engine=engine))
        space.until(SERVE, NAME, "serves anew", serves.serves_another(first))
        wait_until("the node's rules lead to it", lambda: serves.reached(url) != before)
    return {"calmGapSeconds": calm["longestGap"], "promotionGapSeconds": report["longestGap"], "failed": report["failed"]}


def adapter(space: Space, base: str) -> dict[str, float]:
    """Seconds until an adapter answers in a pod that runs, and until a pod answers that takes the place of this one."""
    name, tickets = test_adapters.NAME, {"name": "tickets", "jobRef": {"name": "tickets"}}
    room = {"lora": {"claims": ["tickets-artifacts"]}}
    space.apply(test_adapters.lora("tickets", base), test_adapters.shared(**room))
    space.succeeded("tickets")
    space.until(SERVE, name, "is Ready", lambda s: is_true(s, "Ready"))
    begun = time.perf_counter()
    space.apply(test_adapters.shared(tickets, **room))
    space.until(SERVE, name, "has the adapter", test_adapters.stands("Live"))
    loaded = time.perf_counter() - begun
    (pod,) = test_adapters.ready(space)
    begun = time.perf_counter()
    space.delete("pod", pod, "--wait=false")
    wait_until("another has taken its place", lambda: test_adapters.ready(space) - {pod}, TIMEOUT_SECONDS)
    restarted = time.perf_counter() - begun
    return {
        "adapterSeconds": round(loaded, 1),
        "restartSeconds": round(restarted, 1),
        "ratio": round(loaded / restarted, 3),
    }


def on_the_cluster(folder: Path) -> dict[str, dict[str, float]]:
    """All of it, with the small job's model behind llama.cpp."""
    made = install_locally((*QUICKSTART_IMAGES, "serve-vllm"))
    make_tiny_models(settings.read().hub_directory)
    namespace(made.kubectl, SPACE)
    space = Space(made.kubectl, SPACE, made.operator_image)
    space.apply(jobs.quickstart("ConfigMap"), jobs.SMALL)
    small = space.succeeded(jobs.SMALL["metadata"]["name"])
    found = {}
    with redis_server.started(folder, NODE_ADDRESS, REDIS_PORT) as redis:
        with serves.live(space, NAME, engine=serves.context(512)):
            found["against the bare engine"] = against(*addresses(space), NAME)
            found["prompts of a page"] = against(*addresses(space), NAME, PAGE)
            found["promotion"] = promotion(space, serves.context(640))
        space.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis"}, "stringData": {"url": redis.url}})
        with serves.live(space, "kept", engine=serves.context(512), responseCache={"secretRef": {"name": "redis"}}):
            found["cache"] = kept(serves.address(space, "kept"), "kept")
    found["adapter"] = adapter(space, test_adapters.artifact(small, "merged")["uri"])
    made.kubectl("delete", "namespace", SPACE, "--wait=false")
    return found


def addresses(space: Space) -> tuple[str, str]:
    """URLs of the bare engine and of the Service; both lead on from the node."""
    (pod,) = [p for p in space.items("pod", f"finetune.dev/serve={NAME},finetune.dev/revision") if is_true(p, "Ready")]
    return f"http://{pod['status']['podIP']}:{BEHIND}", serves.address(space, NAME)


def main() -> None:
    if len(sys.argv) == 4:
        bare, url, model = sys.argv[1:]
        print(json.dumps({f"{n} sentences": against(bare, url, model, n) for n in (LINE, PAGE)}, indent=1))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(on_the_cluster(Path(folder)), indent=1))


if __name__ == "__main__":
    main()
