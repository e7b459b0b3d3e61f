"""The adapter that a job hands to a ModelServe which serves its base model: one entry of spec.adapters, and what came of it.

The entry is written under a field manager of the job's own: whoever applies that ModelServe without it leaves it where it is,
and another job's entry stays as well. It goes on when the job is deleted.
"""

from __future__ import annotations

from finetune_operator.api.adapters import AdapterState
from finetune_operator.api.finetunejob import FineTuneJob, FineTuneJobSpec, Serving
from finetune_operator.api.finetunejob_status import FineTuneJobStatus, ServingStatus
from finetune_operator.applied import contains
from finetune_operator.finetunejob.handed import Handover, Stand, fingerprint
from finetune_operator.meta import API_VERSION, Object
from finetune_operator.names import FIELD_MANAGER, label_value, object_name
from finetune_trainer.contract.pipeline import ADAPTER, MERGED
from finetune_trainer.contract.training import Method


def problems(spec: FineTuneJobSpec, serving: Serving) -> list[str]:
    """What is wrong with such a hand-over, one sentence each."""
    if spec.training.method is Method.FULL:
        return ["spec.serving.adapterOf takes an adapter, and spec.training.method Full trains none; take LoRA or QLoRA"]
    given = [name for name in ("template", "artifact") if getattr(serving, name)]
    if serving.deletion_policy == "Delete":
        given.append("deletionPolicy Delete")
    return [f"spec.serving.adapterOf goes without {name}; remove it" for name in given]


def adapter_name(job: FineTuneJob, serving: Serving) -> str:
    """What those who ask call it."""
    return serving.name or object_name(job.metadata.name)


def manager(job: FineTuneJob) -> str:
    """The field manager of this job's entry."""
    return f"{FIELD_MANAGER}.{label_value(job.metadata.name)}"


def wanted(job: FineTuneJob, serving: Serving, status: FineTuneJobStatus) -> Object | None:
    """The part of the ModelServe that this job wants; None while it has no adapter."""
    made = {artifact.name: artifact for artifact in status.artifacts}
    if ADAPTER not in made:
        return None
    entry: Object = {"name": adapter_name(job, serving), "uri": made[ADAPTER].uri, "digest": made[ADAPTER].digest}
    if MERGED in made and made[MERGED].evaluation:
        entry["evaluation"] = made[MERGED].evaluation
    meta = {"name": serving.adapter_of, "namespace": job.metadata.namespace}
    return {"apiVersion": API_VERSION, "kind": "ModelServe", "metadata": meta, "spec": {"adapters": [entry]}}


def judge(wanted: Object, last: ServingStatus | None, found: Object | None) -> Handover:
    """How the ModelServe that was found stands to the entry that is wanted."""
    serve, (entry,) = wanted["metadata"]["name"], wanted["spec"]["adapters"]
    if found is None or "lora" not in (found.get("spec") or {}):
        what = "does not exist in this namespace; create it" if found is None else "has no room for adapters"
        text = f"the ModelServe {serve} {what}: it serves the base model, with spec.lora"
        return Handover(Stand.REFUSED, text)
    if not _is_as_wanted(wanted, found):
        if last is not None and last.handed_over == fingerprint(wanted):
            return Handover(Stand.SUPERSEDED, f"the ModelServe {serve} was then given another {entry['name']}, or none")
        return Handover(Stand.WAITING, f"handing the adapter {entry['name']} to the ModelServe {serve}", apply=wanted)
    state, why = _state(found, entry)
    if state == AdapterState.LIVE:
        return Handover(Stand.READY)
    if state == AdapterState.REFUSED:
        return Handover(Stand.REFUSED, f"the ModelServe {serve} refused the adapter {entry['name']}: {why}")
    return Handover(Stand.WAITING, f"the ModelServe {serve} tries the adapter {entry['name']}; {why}".rstrip("; "))


def stands(serve: str, last: ServingStatus | None, wanted: Object | None, found: Object | None) -> ServingStatus:
    """What the job's status tells of it."""
    digest, handed = (last.digest, last.handed_over) if last is not None and last.name == serve else (None, None)
    if wanted is None or found is None:
        return ServingStatus(name=serve, digest=digest, handed_over=handed)
    (entry,), is_there = wanted["spec"]["adapters"], _is_as_wanted(wanted, found)
    ready = is_there and _state(found, entry)[0] == AdapterState.LIVE
    handed = fingerprint(wanted) if is_there else handed
    url = (found.get("status") or {}).get("url")
    return ServingStatus(name=serve, digest=entry["digest"], handed_over=handed, ready=ready, url=url)


def _is_as_wanted(wanted: Object, found: Object) -> bool:
    """Whether the ModelServe has our entry."""
    (entry,) = wanted["spec"]["adapters"]
    return contains(_named(found.get("spec"), entry["name"]), entry)


def _state(found: Object, entry: Object) -> tuple[str, str]:
    """State of our adapter there, and why; Waiting while nothing is told of it."""
    told = _named(found.get("status"), entry["name"])
    is_ours = told.get("digest") == entry["digest"]
    return (str(told["state"]), str(told.get("message") or "")) if is_ours else (str(AdapterState.WAITING), "")


def _named(part: Object | None, name: str) -> Object:
    entries: list[Object] = (part or {}).get("adapters") or []
    return next((entry for entry in entries if entry["name"] == name), {})
