"""The ModelServe that a job hands its result to: which artifact, which spec, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from finetune_operator.api.finetunejob import FineTuneJob, FineTuneJobSpec, Serving
from finetune_operator.api.finetunejob_status import ArtifactStatus, FineTuneJobStatus
from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.api.rules.modelserve import broken_by
from finetune_operator.applied import contains
from finetune_operator.finetunejob import adapter_handover
from finetune_operator.finetunejob.handed import Handover, Stand, fingerprint
from finetune_operator.meta import API_VERSION, Object
from finetune_operator.modelserve.engines import ENGINES, EngineType
from finetune_operator.names import FIELD_MANAGER, LABEL_JOB, job_labels, label_value, object_name
from finetune_operator.sentences import either, sentences
from finetune_trainer.contract import places
from finetune_trainer.contract.formats import SAFETENSORS
from finetune_trainer.contract.pipeline import ADAPTER, MERGED
from finetune_trainer.contract.places import PVC, Reach
from finetune_trainer.contract.reasons.operator import OperatorReason

Spec = dict[str, Any]


def serve_name(job: FineTuneJob) -> str | None:
    serving = job.spec.serving
    return None if serving is None else serving.adapter_of or serving.name or object_name(job.metadata.name)


def manager(job: FineTuneJob) -> str:
    """The field manager of what is handed over."""
    is_adapter = job.spec.serving is not None and job.spec.serving.adapter_of is not None
    return adapter_handover.manager(job) if is_adapter else FIELD_MANAGER


def serving_artifact(spec: FineTuneJobSpec) -> str | None:
    """Name of the artifact to serve: the one asked for, else the best fit for the engine; None if there is none."""
    if spec.serving is None:
        return None
    if spec.serving.adapter_of is not None:
        return ADAPTER
    named = (spec.serving.template.get("engine") or {}).get("type")
    engine = next((engine for name, engine in ENGINES.items() if name == named), ENGINES[EngineType.VLLM])
    best = next((a.name for a in spec.artifacts if a.format is engine.best), None)
    return spec.serving.artifact or best or (MERGED if SAFETENSORS in engine.formats else None)


def problems(spec: FineTuneJobSpec) -> list[str]:
    """What is wrong with spec.serving, one sentence each: found before anything is trained."""
    if spec.serving is None:
        return []
    if spec.serving.adapter_of is not None:
        return adapter_handover.problems(spec, spec.serving)
    at = "spec.serving.template"
    if "model" in spec.serving.template:
        return [f"{at}.model is set by the job; remove it"]
    if empty := list(_nulls(spec.serving.template, at)):
        return [f"{path} is null; remove it, or give it a value" for path in empty]
    try:
        template = served_spec(spec.serving)
    except ValidationError as error:
        return sentences(error, ModelServeSpec, at)
    if broken := broken_by(template):
        return [f"{at}: {sentence}" for sentence in broken]
    return _unsuited(spec, template, serving_artifact(spec))


def served_spec(serving: Serving) -> ModelServeSpec:
    """The template as a ModelServe's spec, before there is a model. Raises ValidationError; names are the API server's."""
    body = {**serving.template, "model": {"uri": f"{PVC.prefix}the/artifact"}}
    return ModelServeSpec.model_validate(body, by_name=False)


def _nulls(value: Any, path: str) -> Iterator[str]:
    """Where nulls stand: our types take one for "unset", the API server refuses it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _nulls(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _nulls(inner, f"{path}[{index}]")
    elif value is None:
        yield path


def _unsuited(spec: FineTuneJobSpec, template: ModelServeSpec, artifact: str | None) -> list[str]:
    """Why the template's engine can't serve the artifact."""
    name = template.engine.type
    engine = ENGINES[name]
    if artifact is None:
        return [
            f"spec.serving.template.engine.type {name} serves {engine.best}; add a {engine.best} artifact to spec.artifacts"
        ]
    format = next((str(a.format) for a in spec.artifacts if a.name == artifact), SAFETENSORS)
    if format not in engine.formats:
        serves = either([MERGED if served == SAFETENSORS else served for served in engine.formats])
        return [f"spec.serving.artifact {artifact} does not suit {name}, which serves {serves} artifacts"]
    if format in engine.on_gpus_only and not template.parallelism.gpus:
        return [f"spec.serving.artifact {artifact} is {format}, which {name} serves on GPUs only; take merged, or GPUs"]
    return []


def wanted_serve(job: FineTuneJob, status: FineTuneJobStatus) -> Object | None:
    """The ModelServe as this job wants it; None while it has nothing to serve."""
    if job.spec.serving is not None and job.spec.serving.adapter_of is not None:
        return adapter_handover.wanted(job, job.spec.serving, status)
    name = serving_artifact(job.spec)
    artifact = next((a for a in status.artifacts if a.name == name), None)
    return None if artifact is None or job.spec.serving is None else _model_serve(job, job.spec.serving, artifact)


def is_as_wanted(job: FineTuneJob, wanted: Object, found: Object) -> bool:
    """Whether the ModelServe that was found asks for all that is wanted, in this job's name."""
    holder = found["metadata"].get("labels", {}).get(LABEL_JOB)
    return contains(found.get("spec"), _ours(wanted, found)["spec"]) and holder == label_value(job.metadata.name)


def _ours(wanted: Object, found: Object) -> Object:
    """What is wanted, without replicas where somebody else has set them: an autoscaler, or `kubectl scale`."""
    others = [e for e in found["metadata"].get("managedFields") or () if e.get("manager") != FIELD_MANAGER]
    if not any("f:replicas" in (e.get("fieldsV1") or {}).get("f:spec", {}) for e in others):
        return wanted
    return {**wanted, "spec": {k: v for k, v in wanted["spec"].items() if k != "replicas"}}


def _model_serve(job: FineTuneJob, serving: Serving, artifact: ArtifactStatus) -> Object:
    store = job.spec.storage.artifacts
    model: Spec = {"uri": artifact.uri, "digest": artifact.digest}
    model |= {"evaluation": artifact.evaluation} if artifact.evaluation else {}
    if places.of(artifact.uri).reach is not Reach.MOUNTED:
        model |= {k: v for k, v in (("endpoint", store.endpoint), ("region", store.region)) if v}
        model |= {"secretRef": {"name": store.secret_ref.name}} if store.secret_ref else {}
        model |= {"caSecretRef": store.ca_secret_ref.model_dump()} if store.ca_secret_ref else {}
    meta: Object = {
        "name": serve_name(job),
        "namespace": job.metadata.namespace,
        "labels": job_labels(job.metadata.name),
    }
    if serving.deletion_policy == "Delete":
        owner = {"apiVersion": API_VERSION, "kind": "FineTuneJob", "name": job.metadata.name, "uid": job.metadata.uid}
        meta["ownerReferences"] = [owner]
    spec = {**serving.template, "model": model}
    return {"apiVersion": API_VERSION, "kind": "ModelServe", "metadata": meta, "spec": spec}


def judge(job: FineTuneJob, status: FineTuneJobStatus, wanted: Object, found: Object | None) -> Handover:
    """How the ModelServe that was found stands to the one that is wanted."""
    if "model" not in wanted["spec"]:
        return adapter_handover.judge(wanted, status.serving, found)
    name = wanted["metadata"]["name"]
    if found is None:
        return Handover(Stand.WAITING, f"creating the ModelServe {name}", apply=wanted)
    given, digest = status.serving, wanted["spec"]["model"]["digest"]
    holder = found["metadata"].get("labels", {}).get(LABEL_JOB)
    if given is not None and given.digest == digest and holder not in (None, label_value(job.metadata.name)):
        return Handover(Stand.SUPERSEDED, f"the ModelServe {name} was then taken over by the FineTuneJob {holder}")
    if given is None or given.handed_over != fingerprint(wanted):
        if not is_as_wanted(job, wanted, found):
            return Handover(Stand.WAITING, f"updating the ModelServe {name}", apply=_ours(wanted, found))
    elif found["spec"].get("model", {}).get("digest") != digest:
        return Handover(Stand.SUPERSEDED, f"the ModelServe {name} was then given another model by somebody else")
    told = found.get("status") or {}
    seen = told.get("observedGeneration") == found["metadata"].get("generation")
    conditions = {c["type"]: c for c in told.get("conditions") or [] if c.get("status") == "True"}
    if seen and "Ready" in conditions:
        ready = conditions["Ready"]
        if ready.get("reason") == OperatorReason.Pinned and told.get("live", {}).get("modelDigest") != digest:
            return Handover(Stand.REFUSED, f"the ModelServe {name} has another revision pinned: {ready.get('message', '')}")
        return Handover(Stand.READY)
    if seen and "Stalled" in conditions:
        why = conditions["Stalled"]
        return Handover(Stand.REFUSED, f"the ModelServe {name} refused it, {why['reason']}: {why.get('message', '')}")
    return Handover(Stand.WAITING, f"the ModelServe {name} is rolling the model out")
