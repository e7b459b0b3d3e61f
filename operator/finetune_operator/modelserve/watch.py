"""The watch of a rollback window: a Job that reads what the engines of a revision count, and how it reaches their pods.

Service <name>-<revision>-pods, without an address of its own ─► the addresses of all ready pods
Job <name>-<revision>-watch-<since when it takes traffic> ─► ends with the window, or at once with what is too bad
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from finetune_operator.api.modelserve import ModelServe, Revision, RollbackWindow, Signal
from finetune_operator.meta import Object, seconds_since
from finetune_operator.modelserve.engines import ENGINES
from finetune_operator.modelserve.gate import FINAL, GATE_MARGIN_SECONDS, asking_job, asking_pod
from finetune_operator.modelserve.objects import owned, revision_labels
from finetune_operator.modelserve.window import watch_job
from finetune_operator.names import LABEL_GATE, LABEL_REVISION, LABEL_WATCH, object_name, serve_labels
from finetune_operator.settings import Settings
from finetune_trainer.contract.traffic import Bounds, Watch


def services(serve: ModelServe, live: Revision, opened: RollbackWindow) -> Iterator[Object]:
    """What stands for the pods of the revision, and of the one before."""
    before = [opened.revision] if Signal.LATENCY in opened.signals else []
    for revision in (live.name, *before):
        meta = owned(serve, _pods(serve, revision), {LABEL_REVISION: revision, LABEL_WATCH: live.name})
        spec = {"clusterIP": "None", "selector": revision_labels(serve, revision)}
        yield {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def job(serve: ModelServe, live: Revision, opened: RollbackWindow, settings: Settings, now: datetime) -> Object:
    """The Job. A pod that was lost is replaced, and begins to count anew."""
    left = max(1, round(-seconds_since(opened.until, now)))
    engine, on = ENGINES[serve.spec.engine.type], serve.spec.rollout.rollback_on
    wanted = Watch(
        host=_host(serve, live.name),
        before=_host(serve, opened.revision) if Signal.LATENCY in opened.signals else None,
        port=engine.port,
        seconds=left,
        counters=engine.counters,
        bounds=Bounds(**on.model_dump(include=set(Bounds.model_fields))),
    )
    told = wanted.model_dump_json(by_alias=True, exclude_none=True)
    command = ["python", "-m", "finetune_trainer.serving.watch", "--watch", told]
    labels = {**serve_labels(serve.metadata.name), LABEL_GATE: live.name}
    metadata = owned(serve, watch_job(serve, live), {LABEL_REVISION: live.name, LABEL_WATCH: live.name})
    template = asking_pod(serve, settings, "watch", command, labels)
    return asking_job(metadata, template, 1, left + GATE_MARGIN_SECONDS, FINAL)


def _pods(serve: ModelServe, revision: str) -> str:
    return object_name(serve.metadata.name, revision, "pods")


def _host(serve: ModelServe, revision: str) -> str:
    return f"{_pods(serve, revision)}.{serve.metadata.namespace}.svc"
