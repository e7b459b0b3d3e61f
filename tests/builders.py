"""Objects for tests, as the API server would send them: each builder takes only what a test is about."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator.applied import contains
from finetune_operator.decision import Action, Apply, Create, Decision, Delete, Observed, Ref
from finetune_operator.meta import API_VERSION, Object
from finetune_trainer.contract import pipeline
from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.reports import (
    ArtifactFacts,
    Cleaned,
    DatasetFacts,
    Failure,
    FitFacts,
    ModelFacts,
    Scores,
    StepResult,
    Termination,
    TrainFacts,
)
from finetune_trainer.contract.run import RunConfig

NOW = datetime(2026, 11, 23, 15, 0, tzinfo=UTC)
UID = "11111111-2222-3333-4444-555555555555"

SPEC: dict[str, Any] = {
    "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
    "dataset": {"uri": "configmap://facts/train.jsonl", "test": {"uri": "configmap://facts/test.jsonl"}},
    "parallelism": {"gpusPerNode": 0},
    "artifacts": [{"name": "q4", "format": "GGUF", "quantization": "Q4_K_M"}],
}
SERVING: dict[str, Any] = {"template": {"engine": {"type": "LlamaCpp"}}}

MODEL = ModelFacts(revision="abc", digest="sha256:" + "1" * 64, parameters=134515008, architecture="Llama", bytes=2**28)
DATASET = DatasetFacts(
    format=DatasetFormat.PROMPT_COMPLETION,
    train_digest="sha256:" + "2" * 64,
    test_digest="sha256:" + "3" * 64,
    train_rows=80,
    validation_rows=0,
    test_rows=20,
    dropped_rows=0,
    train_tokens=4000,
    longest_row_tokens=64,
)
FIT = FitFacts(predicted_bytes=2 * 2**30, available_bytes=None, micro_batch_size=8, gradient_checkpointing="Off")


def stamp(seconds: float = 0) -> str:
    """A time of the API: this many seconds after NOW."""
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_job(
    name: str = "facts",
    *,
    generation: int = 1,
    status: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> Object:
    """A FineTuneJob. Keywords replace fields of the spec; None removes one."""
    fields = {k: v for k, v in {**copy.deepcopy(SPEC), **spec}.items() if v is not None}
    return {
        "apiVersion": API_VERSION,
        "kind": "FineTuneJob",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": UID,
            "generation": generation,
            "annotations": annotations or {},
        },
        "spec": fields,
        "status": status or {"observedGeneration": -1},
    }


def data_config_map(name: str = "facts", keys: tuple[str, ...] = ("train.jsonl", "test.jsonl")) -> Object:
    return {"kind": "ConfigMap", "metadata": {"name": name, "uid": name}, "data": dict.fromkeys(keys, "{}")}


def make_scores(subject: str, *, loss: float, exact_match: float = 0.0, answers: str | None = None) -> Scores:
    values = {Metric.LOSS: loss, Metric.EXACT_MATCH: exact_match}
    return Scores(subject=subject, samples=20, values=values, answers=answers)


def make_result(run: RunConfig, step: str, *, done: tuple[str, ...] = (), loss: float = 0.1) -> StepResult:
    """What a step's pod reports; `done` names the steps whose output prepare found in the store."""
    wanted = pipeline.fingerprints(run, MODEL, DATASET)
    fields: dict[str, Any] = {"step": step, "fingerprint": wanted[step]}
    match step.partition("-")[0]:
        case "prepare":
            fields |= {"model": MODEL, "dataset": DATASET, "fit": FIT}
            fields["done"] = tuple(make_result(run, s, loss=loss) for s in done)
        case "train":
            fields["train"] = TrainFacts(steps=40, loss=0.02, tokens=100, seconds=60, resumed_from_step=0)
            fields["artifact"] = _artifact("adapter", "PEFT", wanted[step])
        case "merge":
            fields["artifact"] = _artifact("merged", "Safetensors", wanted[step])
        case "quantize":
            fields["artifact"] = _artifact(step.partition("-")[2], "GGUF", wanted[step])
        case "evaluate" if step == "evaluate":
            merged = make_scores("merged", loss=loss, exact_match=0.95, answers=wanted["evaluate/merged"])
            fields["scores"] = (make_scores("base", loss=3.0), merged)
        case "evaluate":
            made = step.partition("-")[2]
            fields["scores"] = (make_scores(made, loss=loss, exact_match=0.9, answers=wanted[f"evaluate/{made}"]),)
        case "clean":
            fields["cleaned"] = Cleaned(runs=1, entries=4, bytes=1000)
        case "publish":
            fields["published"] = (f"{run.publish[int(step.partition('-')[2])].uri}/merged",)
    if step in ("train", "evaluate"):
        fields["report"] = "report/r1/report.html"
    return StepResult(**fields)


def _artifact(name: str, kind: str, fingerprint: str) -> ArtifactFacts:
    return ArtifactFacts(name=name, format=kind, path=f"{name}/{fingerprint}/a1", digest="sha256:" + "a" * 64, bytes=1000)


def finish(job: Object, *, code: int = 0, failed: bool | None = None, seconds: float = 60) -> Object:
    """The Job as its controller leaves it when the pod has ended."""
    kind = "Failed" if (code != 0 if failed is None else failed) else "Complete"
    done = {"type": kind, "status": "True", "lastTransitionTime": stamp(seconds)}
    return {**job, "status": {"startTime": stamp(), "conditions": [done]}}


def make_pod(job: Object, *, phase: str = "Running", **status: Any) -> Object:
    """The pod of a Job."""
    meta = job["metadata"]
    return {
        "metadata": {
            "name": f"{meta['name']}-x1y2z",
            "uid": f"pod-{meta['name']}",
            "labels": meta["labels"],
            "ownerReferences": [{"kind": "Job", "name": meta["name"], "uid": meta["uid"]}],
        },
        "spec": {"nodeName": "node-1"},
        "status": {"phase": phase, "startTime": stamp(), **status},
    }


def ended_pod(job: Object, code: int, termination: Termination | None, *, reason: str = "", seconds: float = 60) -> Object:
    """The pod of a Job whose container ended with this exit code and report."""
    ended = {
        "exitCode": int(code),
        "reason": reason or ("Completed" if code == 0 else "Error"),
        "message": termination.model_dump_json(by_alias=True, exclude_none=True) if termination else "",
        "startedAt": stamp(),
        "finishedAt": stamp(seconds),
    }
    phase = "Succeeded" if code == 0 else "Failed"
    return make_pod(job, phase=phase, containerStatuses=[{"name": "step", "state": {"terminated": ended}}])


def reported_failure(code: ExitCode, reason: str, message: str) -> tuple[ExitCode, Termination]:
    return code, Termination(failure=Failure(reason=reason, message=message))


class Namespace:
    """The children of one job, kept as the API server and the Job controller would: no client, no clock."""

    def __init__(self, *named: Object) -> None:
        self.jobs: dict[str, Object] = {}
        self.pods: dict[str, Object] = {}
        self.config_maps: dict[str, Object] = {}
        self.services: dict[str, Object] = {}
        self.named: dict[Ref, Object | None] = {Ref(o["kind"], o["metadata"]["name"]): o for o in named}
        self.progress: dict[str, dict[str, Any]] = {}
        self._created = 0

    def observed(self) -> Observed:
        children = {
            "Job": tuple(self.jobs.values()),
            "Pod": tuple(self.pods.values()),
            "ConfigMap": tuple(self.config_maps.values()),
            "Service": tuple(self.services.values()),
        }
        return Observed(children, dict(self.named), dict(self.progress))

    def apply(self, decision: Decision) -> list[str]:
        """Carry the actions out; returns them in words, for tests that tell a story. What stands is not applied again."""
        return [self._act(action) for action in decision.actions if not self.stands(action)]

    def stands(self, action: Action) -> bool:
        """Whether the Service that is applied is as it is to be."""
        if not isinstance(action, Apply) or action.body["kind"] != "Service":
            return False
        return contains(self.services.get(action.body["metadata"]["name"]), action.body)

    def _act(self, action: object) -> str:
        match action:
            case Create(body):
                return self._create(copy.deepcopy(body))
            case Apply(body) if body["kind"] == "Service":
                return self._create(copy.deepcopy(body))
            case Delete(kind, name, uid):
                assert self.jobs[name]["metadata"]["uid"] == uid
                del self.jobs[name]
                self.pods.pop(name, None)
                return f"delete {kind} {name}"
        return str(type(action).__name__)

    def _create(self, body: Object) -> str:
        kind, name = body["kind"], body["metadata"]["name"]
        self._created += 1
        body["metadata"]["uid"] = f"uid-{self._created}"
        if kind == "Job":
            if name not in self.jobs:
                self.jobs[name] = body | {"status": {"startTime": stamp()}}
                self.pods[name] = make_pod(body)
            return f"job {body['metadata']['labels']['finetune.dev/step']}"
        if kind == "ConfigMap":
            self.config_maps[name] = body
        elif kind == "Service":
            self.services[name] = body
        else:
            self.named[Ref(kind, name)] = body
        return f"create {kind}"

    def at_work(self) -> dict[str, Object]:
        """The Jobs whose pods are at work, by step."""
        running = (job for job in self.jobs.values() if not job["status"].get("conditions"))
        return {job["metadata"]["labels"]["finetune.dev/step"]: job for job in running}

    def running(self) -> Object:
        """The one Job whose pod is at work."""
        (job,) = self.at_work().values()
        return job

    def end(self, code: int, termination: Termination | None, *, step: str | None = None, **pod: Any) -> None:
        """The pod that runs, or that of this step, ends, and its Job with it."""
        job = self.running() if step is None else self.at_work()[step]
        name = job["metadata"]["name"]
        self.pods[name] = ended_pod(job, code, termination, **pod)
        self.jobs[name] = finish(job, code=code)
