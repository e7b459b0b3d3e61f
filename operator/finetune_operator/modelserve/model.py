"""Which model folder spec.model stands for. A job's artifact counts once the job's gates have passed.

uri ───────────────────────────► that folder
jobRef ─ job succeeded ────────► its artifact; its base model as soon as it was fetched
       ├ job makes a new one ──► the artifact resolved before, else wait
       └ job is gone ──────────► the artifact resolved before, and Stalled until the job is back
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.api.finetunejob import ArtifactStore
from finetune_operator.api.finetunejob_status import ArtifactStatus, FineTuneJobStatus
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.api.served_model import JobRef, ResolvedModel
from finetune_operator.decision import NOT_FOUND, Observed, Ref
from finetune_operator.meta import Object
from finetune_operator.modelserve.engines import ENGINES, EngineType
from finetune_trainer.contract import places
from finetune_trainer.contract.pipeline import BASE
from finetune_trainer.contract.places import Reach, claim_of
from finetune_trainer.contract.reasons import Reason
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reports import ModelFacts


@dataclass(frozen=True)
class Obstacle:
    """Why spec.model can't be followed now. `stalled`: somebody has to change something. `blocks`: pods could not start."""

    reason: Reason
    message: str
    stalled: bool = True
    blocks: bool = False


@dataclass(frozen=True)
class Resolution:
    """The model to serve, if any is known, and what stands in the way of the one that was asked for."""

    model: ResolvedModel | None
    obstacle: Obstacle | None = None


def resolve(serve: ModelServe, observed: Observed) -> Resolution:
    """Follow spec.model, then see that its claim and its Secret exist."""
    found = _follow(serve, observed)
    if found.model is None or found.obstacle is not None:
        return found
    return Resolution(found.model, _missing(serve, found.model, observed) or _unscored(serve, found.model))


def refs(serve: ModelServe) -> tuple[Ref, ...]:
    """What must be read by name: the job, and claim and Secret of the folder as far as it is known by now."""
    spec, known = serve.spec.model, serve.status.model
    found = [] if spec.job_ref is None else [Ref("FineTuneJob", spec.job_ref.name)]
    model = _given(serve) if spec.job_ref is None else known
    if model is not None:
        found += _needs(model)
    return (*found, *_keys(serve))


def _follow(serve: ModelServe, observed: Observed) -> Resolution:
    ref = serve.spec.model.job_ref
    if ref is None:
        return Resolution(_given(serve))
    last = serve.status.model if serve.status.model and serve.status.model.source == _source(ref) else None
    body = observed.named.get(Ref("FineTuneJob", ref.name))
    if body is None:
        text = f"there is no FineTuneJob {ref.name} in this namespace; create it, or correct spec.model.jobRef.name"
        return Resolution(last, Obstacle(OperatorReason.JobNotFound, text))
    job = FineTuneJobStatus.model_validate(body.get("status") or {})
    true = {c.type: c for c in job.conditions if c.status == "True"}
    is_given = ref.artifact == BASE and any(made.name == BASE for made in job.artifacts)  # no gate is about that
    if "Succeeded" in true or is_given:
        return _artifact(serve.spec.engine.type, ref, job, _store(body))
    if last is not None:
        return Resolution(last)  # the newest artifact that passed its gates
    if (stop := true.get("Failed") or true.get("Stalled")) is not None:
        text = f"the FineTuneJob {ref.name} made nothing to serve, {stop.reason}: {stop.message}"
        return Resolution(None, Obstacle(OperatorReason.JobFailed, text))
    text = f"waiting until the FineTuneJob {ref.name} has succeeded; its stage is {job.stage or 'Pending'}"
    return Resolution(None, Obstacle(OperatorReason.WaitingForJob, text, stalled=False))


def _given(serve: ModelServe) -> ResolvedModel:
    model = serve.spec.model
    assert model.uri is not None  # a CEL rule: exactly one of jobRef and uri
    return ResolvedModel(
        source=model.uri,
        uri=model.uri,
        digest=model.digest,
        evaluation=model.evaluation,
        endpoint=model.endpoint,
        region=model.region,
        secret=model.secret_ref.name if model.secret_ref else None,
        ca_secret_ref=model.ca_secret_ref,
    )


def _store(job: Object) -> ArtifactStore:
    return ArtifactStore.model_validate(job["spec"].get("storage", {}).get("artifacts", {}))


def _artifact(engine: EngineType, ref: JobRef, job: FineTuneJobStatus, store: ArtifactStore) -> Resolution:
    made = {a.name: a for a in job.artifacts}
    artifact = made.get(ref.artifact)
    if artifact is None:
        text = (
            f"the FineTuneJob {ref.name} has no artifact {ref.artifact}; set spec.model.jobRef.artifact to one of"
            f" {', '.join(made) or 'those it makes'}, or add it to the job's spec.artifacts"
        )
        return Resolution(None, Obstacle(OperatorReason.ArtifactNotFound, text))
    serves = ENGINES[engine].formats
    if artifact.format not in serves:
        text = (
            f"{engine} serves {' or '.join(serves)}, and the artifact {ref.artifact} is {artifact.format};"
            " change spec.engine.type or spec.model.jobRef.artifact"
        )
        return Resolution(None, Obstacle(OperatorReason.EngineMismatch, text))
    return Resolution(_resolved(_source(ref), artifact, store, job.model))


def _source(ref: JobRef) -> str:
    return f"job/{ref.name}/{ref.artifact}"


def _resolved(source: str, artifact: ArtifactStatus, store: ArtifactStore, base: ModelFacts | None) -> ResolvedModel:
    remote = places.of(artifact.uri).reach is not Reach.MOUNTED
    return ResolvedModel(
        source=source,
        uri=artifact.uri,
        digest=artifact.digest,
        bytes=artifact.bytes,
        parameters=base.parameters if base else None,
        cached_numbers=base.cached_numbers if base else None,
        context_tokens=base.context_tokens if base else None,
        evaluation=artifact.evaluation,
        endpoint=store.endpoint if remote else None,
        region=store.region if remote else None,
        secret=store.secret_ref.name if remote and store.secret_ref else None,
        ca_secret_ref=store.ca_secret_ref if remote else None,
    )


def _unscored(serve: ModelServe, model: ResolvedModel) -> Obstacle | None:
    """A gate that asks test rows, and a model of which no evaluation is known."""
    if model.evaluation is not None or not serve.spec.rollout.gate.compares:
        return None
    text = (
        f"spec.rollout.gate.heldOut and judge take the test rows of an evaluation, and {model.source} has none that can be"
        " asked, as of rows without prompts; leave heldOut and judge out, or run the job again with rows that have answers"
    )
    return Obstacle(OperatorReason.EvaluationNotFound, text, blocks=True)


def _needs(model: ResolvedModel) -> list[Ref]:
    claims = dict.fromkeys(claim for uri in (model.uri, model.evaluation) if uri and (claim := claim_of(uri)))
    secrets = (model.secret, model.ca_secret_ref.name if model.ca_secret_ref else None)
    found = [Ref("PersistentVolumeClaim", claim) for claim in claims]
    return [*found, *(Ref("Secret", name) for name in dict.fromkeys(secrets) if name is not None)]


def _keys(serve: ModelServe) -> list[Ref]:
    """API keys of the engine and of the judge, the cache, what the judge is told, and the claims of adapters."""
    auth, judge = serve.spec.auth, serve.spec.rollout.gate.judge
    found = [Ref("PersistentVolumeClaim", claim) for claim in (serve.spec.lora.claims if serve.spec.lora else ())]
    found += [Ref("Secret", by.secret_ref.name) for by in (auth, serve.spec.response_cache) if by is not None]
    if judge is not None:
        found += [Ref("Secret", judge.secret_ref.name)] if judge.secret_ref else []
        found += [Ref("ConfigMap", judge.rubric.name)] if judge.rubric else []
    return found


def _missing(serve: ModelServe, model: ResolvedModel, observed: Observed) -> Obstacle | None:
    """A claim or Secret that was looked for and is not there: pods would wait for it without an end."""
    for ref in (*_needs(model), *_keys(serve)):
        if ref in observed.named and observed.named[ref] is None:
            text = f"{model.source} needs the {ref.kind} {ref.name}, which does not exist in this namespace; create it"
            return Obstacle(NOT_FOUND[ref.kind], text, blocks=True)
    return _no_rubric(serve, observed)


def _no_rubric(serve: ModelServe, observed: Observed) -> Obstacle | None:
    judge = serve.spec.rollout.gate.judge
    if judge is None or judge.rubric is None:
        return None
    found = observed.named.get(Ref("ConfigMap", judge.rubric.name))
    if found is None or judge.rubric.key in (found.get("data") or {}):
        return None
    text = f"the ConfigMap {judge.rubric.name} has no key {judge.rubric.key}; add it, or correct spec.rollout.gate.judge.rubric"
    return Obstacle(OperatorReason.ConfigMapKeyNotFound, text, blocks=True)
