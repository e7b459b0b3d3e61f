"""The Jobs of an adapter. The gate: once each pod has loaded it, it is asked under the name that the engine has for it. After
that, and whenever pods have become ready since: until each pod leads its own name to it.
"""

from __future__ import annotations

from finetune_operator.api.adapters import AdapterState
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.meta import Object
from finetune_operator.modelserve.adapters import Step, gate_job
from finetune_operator.modelserve.engines import ENGINES
from finetune_operator.modelserve.gate import (
    FINAL,
    GATE_FOLDER,
    GATE_MARGIN_SECONDS,
    GATE_RETRIES,
    LOST,
    add_rows,
    asking_job,
    asking_pod,
    prompts_name,
)
from finetune_operator.modelserve.objects import owned, revision_labels, revision_name, service_url
from finetune_operator.names import LABEL_ADAPTER, LABEL_GATE, LABEL_REVISION, object_name, serve_labels
from finetune_operator.settings import Settings
from finetune_trainer.contract.served_adapters import Awaited, engine_name

TOLD_SECONDS = 120  # until kubelets have told pods of a ConfigMap that changed
READY_SECONDS, READY_RETRIES = 30, 1  # for pods that were told when they started, and have taken requests since


def each_pod(serve: ModelServe, revision: str) -> Object:
    """A Service without an address of its own: it stands for the addresses of all ready pods of the revision."""
    meta = owned(serve, _each_name(serve, revision), {LABEL_REVISION: revision})
    spec = {"clusterIP": "None", "selector": revision_labels(serve, revision)}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def _each_name(serve: ModelServe, revision: str) -> str:
    return object_name(serve.metadata.name, revision, "each")


def job(serve: ModelServe, step: Step, revision: str, model: ResolvedModel, settings: Settings) -> Object:
    """The Job, which asks the pods of the revision that serves."""
    gate, told = step.adapter.gate, step.status
    is_told = told.live is not None and bool(told.live.told) and told.state is not AdapterState.GATING
    rows = step.evaluation if gate.test_rows.count and told.state is AdapterState.GATING else None
    awaited = READY_SECONDS if is_told else gate.timeout_seconds + TOLD_SECONDS
    retries = READY_RETRIES if is_told else GATE_RETRIES
    seconds = awaited + (1 + (rows is not None)) * gate.timeout_seconds + GATE_MARGIN_SECONDS
    labels = {**serve_labels(serve.metadata.name), LABEL_GATE: revision}
    template = asking_pod(serve, settings, "ask", _command(serve, step, revision, awaited, rows), labels)
    (container,) = template["spec"]["containers"]
    container["volumeMounts"].insert(0, {"name": "prompts", "mountPath": GATE_FOLDER, "readOnly": True})
    prompts = {"name": "prompts", "configMap": {"name": prompts_name(serve, gate.prompts)}}
    template["spec"]["volumes"].insert(0, prompts)
    if rows is not None:
        add_rows(template["spec"], serve, revision, model, rows)
    metadata = owned(serve, gate_job(serve, told), {LABEL_ADAPTER: told.name})
    return asking_job(metadata, template, retries, seconds * (retries + 1), FINAL, LOST)


def _command(serve: ModelServe, step: Step, revision: str, seconds: int, rows: str | None) -> list[str]:
    gate, told = step.adapter.gate, step.status
    is_tried = told.state is AdapterState.GATING
    name = engine_name(told.name, told.digest or "")
    awaited = Awaited(
        host=f"{_each_name(serve, revision)}.{serve.metadata.namespace}.svc",
        port=ENGINES[serve.spec.engine.type].port,
        engine_name=name,
        trial=(told.trial if is_tried or told.live is None else told.live.trial) or "",
        serves=not is_tried,
        pods=step.pods,
        seconds=seconds,
    )
    command = ["python", "-m", "finetune_trainer.serving.ask"]
    command += ["--url", service_url(serve, revision_name(serve, revision)), "--model", name]
    command += ["--prompts", f"{GATE_FOLDER}/prompts.json", "--max-tokens", str(gate.max_tokens)]
    command += ["--timeout", str(gate.timeout_seconds), "--awaited", awaited.model_dump_json(by_alias=True)]
    if rows is not None:
        command += ["--rows", rows, "--count", str(gate.test_rows.count), "--min-equal", f"{gate.test_rows.min_equal:g}"]
    return command
