"""Start: settings, logs, probes, metrics; wait for the CRDs, then to be the leader; then Kopf, workers, progress and resync.

no CRDs (not ready) ──► standby (ready) ──► leader ──► SIGTERM: no new keys, running passes end, lease released, exit 0
                                               └─────► lease lost, a watch or a loop dead: exit, a fresh process repairs it
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn

import kopf
import structlog
from prometheus_client import REGISTRY

from finetune_operator import crds, handlers, logs, metrics, probes, tracing
from finetune_operator.cache import Children, Own
from finetune_operator.cluster import Cluster
from finetune_operator.controller import Controller
from finetune_operator.errors import ClusterError
from finetune_operator.kinds import KINDS
from finetune_operator.leader import Elector
from finetune_operator.meta import Key
from finetune_operator.progress_reader import ProgressReader
from finetune_operator.reconcile import Kind
from finetune_operator.series import Series
from finetune_operator.settings import Settings, read_settings
from finetune_operator.tracing import SILENT, Traces
from finetune_operator.watches import WATCHED, Watches
from finetune_operator.workqueue import WorkQueue

BURST_SECONDS = 0.2  # in which a child's events are one reason for a pass
DRAIN_SECONDS = 10.0  # what running passes get after SIGTERM

log = structlog.get_logger("operator")


def die(why: str) -> NoReturn:
    """End at once: whatever still runs must not write any more."""
    log.error("died", reason=why)
    sys.stdout.flush()
    os._exit(1)


async def run(settings: Settings, kinds: dict[str, Kind], traces: Traces = SILENT) -> None:
    """The operator's life, until SIGTERM."""
    stop = asyncio.Event()
    _stop_on_signals(stop)
    electors: list[Elector] = []  # one, or none where there is no election

    def fence() -> None:
        for elector in electors:
            elector.check()

    cluster = await Cluster.connect(fence, settings.identity)
    readiness = probes.Readiness()
    server = await probes.serve(settings.http_port, readiness)
    try:
        await _until(crds.wait_for([plural for _, _, plural in handlers.OURS], cluster, readiness), stop)
        if settings.leader_election:
            electors.append(Elector(cluster, Key("Lease", settings.own_namespace, settings.lease), settings.identity, die))
            log.info("standing by", identity=settings.identity)
            await _until(electors[0].acquire(), stop)
        if not stop.is_set():
            await lead(cluster, electors, settings, kinds, traces, stop)
        log.info("stopped")
    finally:
        for elector in electors:
            with contextlib.suppress(ClusterError):  # then the next replica waits until the lease has run out
                await elector.release()
        await server.cleanup()
        await cluster.close()
        traces.stop()


async def lead(
    cluster: Cluster, electors: list[Elector], settings: Settings, kinds: dict[str, Kind], traces: Traces, stop: asyncio.Event
) -> None:
    """Act until told to stop. A part that ends before that ends the process."""
    log.info("leading", identity=settings.identity, namespace=settings.namespace or "all")
    queue: WorkQueue[Key] = WorkQueue()
    progress = ProgressReader(cluster)
    own, children = Own(), Children()
    _measure(own, children, queue, settings)
    controller = Controller(kinds, cluster, queue, progress, own, children, settings, traces=traces)
    events = handlers.Events(queue.add, lambda key, rank: queue.add_after(key, BURST_SECONDS, rank), own, children, progress)
    watches = Watches(cluster, settings.namespace, children, events.child)
    # Kopf cancels, when it ends, what was started after it: so these come first.
    others = [_vital(elector.hold(), stop) for elector in electors]
    others += [_vital(watches.follow(kind), stop) for kind in WATCHED]
    await _until(watches.all_listed(), stop)
    await _until(controller.list_all(), stop)
    workers = [_vital(controller.work(), stop) for _ in range(settings.workers)]
    others += [_vital(part, stop) for part in (controller.read_progress(), controller.resync())]
    gc.collect()
    gc.freeze()  # what start-up made lives as long as the process
    await _watch(handlers.registry(events), settings, stop)
    queue.shut_down()
    await asyncio.wait(workers, timeout=DRAIN_SECONDS)
    for part in (*workers, *others):
        part.cancel()


def _measure(own: Own, children: Children, queue: WorkQueue[Key], settings: Settings) -> None:
    """Have /metrics tell what this replica, which acts, knows and does."""
    metrics.begin(KINDS, settings.workers)
    metrics.LEADER.labels(settings.lease).set(1)  # also where nothing is elected
    metrics.LONGEST_PASS.set_function(queue.longest_pass)
    metrics.ConditionCounts(own.counts)
    REGISTRY.register(Series(own, children))


def _vital(part: Coroutine[Any, Any, None], stop: asyncio.Event) -> asyncio.Task[None]:
    """A task without which there is no operator."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (not stop.is_set() or task.exception() is not None):
            die(f"{task.get_name()} ended: {task.exception()!r}")

    task = asyncio.create_task(part, name=getattr(part, "__qualname__", "a part"))
    task.add_done_callback(ended)
    return task


async def _watch(registry: kopf.OperatorRegistry, settings: Settings, stop: asyncio.Event) -> None:
    """Kopf until `stop`. It takes the signals when it starts, so they are taken back when it is ready."""
    ready = asyncio.Event()
    watching = asyncio.create_task(
        kopf.operator(
            registry=registry,
            settings=handlers.kopf_settings(),
            identity=settings.identity,  # type: ignore[arg-type]  # else Kopf asks for a user name, and a pod's user has none
            standalone=True,
            clusterwide=not settings.namespace,
            namespaces=[settings.namespace] if settings.namespace else [],
            stop_flag=stop,
            ready_flag=ready,
        )
    )
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([watching, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    _stop_on_signals(stop)
    await watching
    if not stop.is_set():
        die("Kopf ended")


async def _until(part: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
    """Run the part to its end, or until `stop`."""
    tasks = [asyncio.create_task(part), asyncio.create_task(stop.wait())]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()


def _stop_on_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


def main() -> None:
    """Entry point of `python -m finetune_operator`."""
    try:
        settings = read_settings()
        logs.configure(settings.log_level)
        traces = tracing.start(settings.otlp_endpoint)
    except ValueError as error:
        sys.exit(str(error))
    asyncio.run(run(settings, KINDS, traces))


if __name__ == "__main__":
    main()
