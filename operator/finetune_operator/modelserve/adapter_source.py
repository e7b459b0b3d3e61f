"""Which adapter an entry of spec.adapters stands for, and why it can't be served, as far as that is known without its files."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.api.adapters import Adapter
from finetune_operator.api.finetunejob_status import FineTuneJobStatus
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.decision import Observed, Ref
from finetune_operator.meta import Object
from finetune_operator.modelserve.adapter_pod import reaches
from finetune_operator.modelserve.pod import served_name
from finetune_trainer.contract.adapters import Lora
from finetune_trainer.contract.formats import PEFT
from finetune_trainer.contract.pipeline import ADAPTER, MERGED
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.served_adapters import misfit


@dataclass(frozen=True)
class Source:
    """The adapter that is asked for, or why there is none: `waits` for a job, else somebody has to change something."""

    uri: str | None = None
    digest: str | None = None
    evaluation: str | None = None
    reason: str | None = None
    message: str | None = None
    waits: bool = False


def refs(serve: ModelServe) -> list[Ref]:
    """The jobs that adapters come from."""
    return [Ref("FineTuneJob", adapter.job_ref.name) for adapter in serve.spec.adapters if adapter.job_ref is not None]


def source(serve: ModelServe, adapter: Adapter, model: ResolvedModel | None, observed: Observed) -> Source:
    """Follow one entry."""
    if adapter.name == served_name(serve):
        text = f"{adapter.name} is the name of the base model; give the adapter another one, or set spec.servedName"
        return Source(reason=OperatorReason.NameTaken, message=text)
    if adapter.job_ref is None:
        found = Source(adapter.uri, adapter.digest, adapter.evaluation)
    else:
        name = adapter.job_ref.name
        body = observed.named.get(Ref("FineTuneJob", name))
        found = _missing(name) if body is None else _of_job(serve, name, body)
    if found.uri is None or model is None:
        return found
    far = [uri for uri in (found.uri, found.evaluation) if uri is not None and not reaches(serve, model, uri)]
    if not far:
        return found
    text = (
        f"the adapter needs {far[0]}, which pods don't reach: they have the model's own claim or bucket, and the claims of"
        " spec.lora.claims; add its claim there"
    )
    return Source(reason=OperatorReason.AdapterOutOfReach, message=text)


def _missing(name: str) -> Source:
    text = f"there is no FineTuneJob {name} in this namespace; create it, or correct jobRef.name"
    return Source(reason=OperatorReason.JobNotFound, message=text)


def _of_job(serve: ModelServe, name: str, body: Object) -> Source:
    job = FineTuneJobStatus.model_validate(body.get("status") or {})
    true = {c.type: c for c in job.conditions if c.status == "True"}
    if "Succeeded" not in true:
        if (stop := true.get("Failed") or true.get("Stalled")) is not None:
            text = f"the FineTuneJob {name} made no adapter, {stop.reason}: {stop.message}"
            return Source(reason=OperatorReason.JobFailed, message=text)
        text = f"waiting until the FineTuneJob {name} has succeeded; its stage is {job.stage or 'Pending'}"
        return Source(reason=OperatorReason.WaitingForJob, message=text, waits=True)
    made = {artifact.name: artifact for artifact in job.artifacts}
    adapter = made.get(ADAPTER)
    if adapter is None or adapter.format != PEFT:
        text = (
            f"the FineTuneJob {name} trains every weight, so it has no adapter; set its spec.training.method to LoRA or QLoRA"
        )
        return Source(reason=OperatorReason.ArtifactNotFound, message=text)
    if (wrong := _misfit(serve, body)) is not None:
        return Source(reason=StepReason.AdapterUnsupported, message=f"the adapter of the FineTuneJob {name}: {wrong}")
    return Source(adapter.uri, adapter.digest, made[MERGED].evaluation if MERGED in made else None)


def _misfit(serve: ModelServe, body: Object) -> str | None:
    """What the job's own spec tells of its adapter."""
    lora = Lora.model_validate((body["spec"].get("training") or {}).get("lora") or {})
    room = 0 if serve.spec.lora is None else serve.spec.lora.max_rank
    return misfit(lora.saved_rank, room, dora=lora.dora, whole=lora.modules_to_save)
