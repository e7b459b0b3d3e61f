"""A cluster as Prometheus sees it: our programs' own registries, engines and exporters as they were recorded, on loopback.

    operator (in this process)   trainer's reporter (in this process)   tests/recorded/*.prom (a small web server)
              └──────────────────────────────┬──────────────────────────────────────────┘
                                  Prometheus, with the chart's rules and the chart's relabelings

`faq` trains, `bad` waits for somebody; `bot` is served by vLLM, `small` by llama.cpp, `gone` by nobody.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dashboards.panels import Board, Panel
from prometheus_client import REGISTRY
from tests.builders import make_job
from tests.listening import Quiet, listening
from tests.serving import make_serve

from finetune_operator import metrics, probes
from finetune_operator.cache import Children, Own
from finetune_operator.meta import Object
from finetune_operator.series import Series
from finetune_operator.workqueue import WorkQueue

RECORDED = Path(__file__).parents[1] / "recorded"
TEAM = "team"
CHOSEN = {"finetune-job": "faq", "finetune-served": "bot"}  # by a dashboard's variables
PODS = {  # of whom, and their labels
    "faq-train-1": {"finetune.dev/job": "faq", "finetune.dev/step": "train"},
    "bot-r1-0": {"finetune.dev/serve": "bot", "finetune.dev/revision": "r1"},
    "small-r2-0": {"finetune.dev/serve": "small", "finetune.dev/revision": "r2"},
}


def sent(board: Board, panel: Panel) -> str:
    """A panel's query as Grafana sends it, for the object that is chosen."""
    query = panel.query.replace("$__rate_interval", "1m").replace("$namespace", TEAM)
    return query.replace("$name", CHOSEN.get(board.uid, ""))


def condition(kind: str, status: str, reason: str) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": ""}


def objects() -> Iterator[Object]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    progress = {"step": "train", "current": 7, "total": 40, "loss": 0.5, "learningRate": 0.001, "tokensPerSecond": 90.0}
    working = {
        "conditions": [condition("Ready", "False", "Training"), condition("Reconciling", "True", "Training")],
        "progress": progress | {"etaSeconds": 60, "updatedAt": now},
        "fit": {"measuredBytes": 2**30},
        "gpuSeconds": 600,
        "lastFailure": {"step": "train", "reason": "Hang", "time": now},
        "gates": [{"name": "better", "passed": False, "action": "Block"}],
    }
    yield make_job("faq", status=working)
    waits = [condition("Ready", "False", "ClaimNotFound"), condition("Stalled", "True", "ClaimNotFound")]
    yield make_job("bad", status={"conditions": waits})
    yield make_job(
        "over", status={"conditions": [condition("Ready", "True", "Succeeded"), condition("Succeeded", "True", "Succeeded")]}
    )
    for name, revision in (("bot", "r1"), ("small", "r2"), ("gone", None)):
        told = [condition("Ready", "True", "Serving"), condition("Available", "True" if revision else "False", "Answering")]
        live = {"replicas": 1, "live": {"name": revision, "state": "Live"}} if revision else {}
        yield make_serve(name, replicas=1) | {"status": {"conditions": told, **live}}
    for name, labels in PODS.items():
        yield {"kind": "Pod", "metadata": {"name": name, "labels": labels}, "status": {"phase": "Running"}}


def caches() -> tuple[Own, Children]:
    """What the watches have told."""
    own, children = Own(), Children()
    for number, body in enumerate(objects(), start=1):
        body["metadata"] |= {"namespace": TEAM, "uid": f"uid-{number}", "resourceVersion": str(number)}
        (children if body["kind"] == "Pod" else own).keep(body)
    return own, children


async def work() -> None:
    """What workers and client count in a pass, of which the first fails and comes again."""
    queue: WorkQueue[str] = WorkQueue()
    for kind in ("FineTuneJob", "ModelServe"):
        queue.add(kind)
        key = await queue.get()
        with metrics.ACTIVE_WORKERS.labels(kind).track_inprogress(), metrics.RECONCILE_SECONDS.labels(kind).time():
            metrics.API_REQUESTS.labels("PUT", "200").inc()
            metrics.WATCH_EVENTS.labels("Job").inc()
            metrics.RECONCILES.labels(kind, "success").inc()
        queue.add_failed(key)
        queue.done(key)


@contextmanager
def operator(port: int) -> Iterator[None]:
    """The operator's /metrics, as its process serves it, while passes go on."""
    series, loop, stopped = Series(*caches()), asyncio.new_event_loop(), threading.Event()
    metrics.begin(("FineTuneJob", "ModelServe"), workers=8)
    metrics.LEADER.labels("finetune-operator").set(1)
    metrics.LONGEST_PASS.set_function(lambda: 0.0)
    counts = metrics.ConditionCounts(series._own.counts)
    REGISTRY.register(series)

    async def live() -> None:
        server = await probes.serve(port, probes.Readiness())
        while not stopped.is_set():
            await work()
            await asyncio.to_thread(stopped.wait, 0.5)
        await server.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),))
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        loop.close()
        REGISTRY.unregister(series)
        REGISTRY.unregister(counts)


# ── What was recorded ─────────────────────────────────────────────────────────────────────────────────────────────────


def gone_on(text: str, times: int) -> str:
    """A recorded exposition, its counters so many times as far."""
    types = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))

    def is_counter(name: str) -> bool:
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        return types.get(name) == "counter" or types.get(family) in ("histogram", "counter")

    lines = []
    for line in text.splitlines():
        name, value = re.split(r"[{ ]", line)[0], line.rpartition(" ")[2]
        lines.append(
            line if line.startswith("#") or not is_counter(name) else f"{line.rpartition(' ')[0]} {float(value) * times}"
        )
    return "\n".join(lines) + "\n"


def of_pod(text: str, pod: str) -> str:
    """What DCGM's exporter adds on Kubernetes, where the GPU is a pod's."""
    return text.replace('{gpu="', f'{{namespace="{TEAM}",pod="{pod}",container="step",gpu="')


def only(text: str, pod: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("#") or f'pod="{pod}"' in line) + "\n"


def pages() -> dict[str, str]:
    """Path and text of each exposition that is not our own. What is asked for `exported` is scraped without honour_labels."""
    read = {file.stem: file.read_text() for file in RECORDED.glob("*.prom")}
    gpu, state = read["gpu"], read["kube-state-metrics"]
    return {
        "/vllm": read["vllm"],
        "/llamacpp": read["llamacpp"],
        "/dcgm": of_pod(gpu, "faq-train-1"),
        "/dcgm-exported": of_pod(gpu, "bot-r1-0"),
        "/state": only(state, "faq-train-1"),
        "/state-exported": only(state, "bot-r1-0"),
    }


@contextmanager
def recorded(port: int) -> Iterator[None]:
    """A web server of `pages`, whose counters go on with each scrape."""
    texts, asked = pages(), Counter[str]()

    class Handler(Quiet):
        def do_GET(self) -> None:
            asked[self.path] += 1
            self.answer(200, gone_on(texts[self.path], asked[self.path]).encode())

    with listening(Handler, port):
        yield


@contextmanager
def trainer(report: Callable[[int], None]) -> Iterator[None]:
    """A training that goes on: `report` is told each step."""
    stopped = threading.Event()

    def train() -> None:
        begin = time.monotonic()
        while not stopped.wait(0.5):
            report(int(time.monotonic() - begin) + 1)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
