"""What a step's pod mounts: its run, room to work in, claims, ConfigMaps, certificates; and whose Secrets it reads."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator import certificates
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.finetunejob.image import asks_vllm
from finetune_operator.finetunejob.runs import Run
from finetune_operator.meta import Object
from finetune_operator.names import volume_name
from finetune_trainer.contract import pod
from finetune_trainer.contract.artifacts import Publish
from finetune_trainer.contract.fields import SecretRef
from finetune_trainer.contract.pipeline import PREPARE, TRAIN, Step, claims, config_maps, models
from finetune_trainer.contract.places import CONFIG_MAP, PVC, claim_of, mounted_path
from finetune_trainer.contract.pod import Owner


@dataclass(frozen=True)
class Volume:
    source: Object
    mount: Object  # in the step's container


def volumes(job: FineTuneJob, run: Run, step: Step) -> list[Volume]:
    """All but Secrets with credentials, which one pod may mount at several places."""
    size = job.spec.storage.scratch.size
    scratch = {"sizeLimit": size} if size else {}
    folder = pod.RUN_FILE.rpartition("/")[0]
    found = [
        _volume("run", {"configMap": {"name": run.config_map}}, folder, read_only=True),
        _volume("scratch", {"emptyDir": scratch}, pod.SCRATCH),
        _volume("tmp", {"emptyDir": {}}, "/tmp"),
    ]
    if (ca := job.spec.storage.artifacts.ca_secret_ref) is not None:
        found.append(Volume(certificates.volume(ca), certificates.mount()))
    if step.needs_gpu or asks_vllm(run, step):
        found.append(_volume("shm", {"emptyDir": {"medium": "Memory"}}, "/dev/shm"))
    writable = _written_claims(run, step)
    for claim in _claims(run, step):
        path = mounted_path(f"{PVC.prefix}{claim}", pod.MOUNTS)
        source = {"persistentVolumeClaim": {"claimName": claim}}
        found.append(_volume(volume_name("claim", claim), source, path or "", read_only=claim not in writable))
    for name in config_maps(run.config) if step.name == PREPARE else ():
        path = mounted_path(f"{CONFIG_MAP.prefix}{name}", pod.MOUNTS)
        found.append(_volume(volume_name("data", name), {"configMap": {"name": name}}, path or "", read_only=True))
    return found


def _volume(name: str, source: Object, path: str, *, read_only: bool = False) -> Volume:
    mount: Object = {"name": name, "mountPath": path}
    return Volume({"name": name, **source}, mount | ({"readOnly": True} if read_only else {}))


def _claims(run: Run, step: Step) -> list[str]:
    """Claims that a step mounts: rows are read by prepare only, a place to publish to by its own step only."""
    config = run.config
    uris = [config.store.uri, *(model.uri for model in models(config))]
    if step.name == PREPARE:
        return [c for c in claims(config) if c not in _publish_only(run)]
    if step.stage == "publish":
        uris.append(_published(run, step).uri)
    return list(dict.fromkeys(claim for uri in uris if (claim := claim_of(uri))))


def _publish_only(run: Run) -> set[str]:
    without = run.config.model_copy(update={"publish": ()})
    return set(claims(run.config)) - set(claims(without))


def _written_claims(run: Run, step: Step) -> set[str]:
    uris = [run.config.store.uri]
    if step.stage == "publish":
        uris.append(_published(run, step).uri)
    return {claim for uri in uris if (claim := claim_of(uri))}


def secrets(job: FineTuneJob, run: Run, step: Step) -> dict[Owner, str]:
    """The Secrets that a step reads, by whose they are."""
    config, store = run.config, job.spec.storage.artifacts
    refs: dict[Owner, SecretRef | None] = {Owner.STORE: store.secret_ref}
    if step.name == PREPARE:
        teacher = config.training.distillation.teacher if config.training.distillation else None
        refs |= {Owner.MODEL: config.model.secret_ref, Owner.TEACHER: teacher.secret_ref if teacher else None}
        refs |= {Owner.DATASET: config.dataset.secret_ref}
    elif step.stage == "publish":
        refs |= {Owner.PUBLISH: _published(run, step).secret_ref}
    elif step.stage == TRAIN:
        refs |= {Owner.REPORTS: config.training.report_secret_ref}
    return {owner: ref.name for owner, ref in refs.items() if ref is not None}


def _published(run: Run, step: Step) -> Publish:
    return run.config.publish[int(step.name.rpartition("-")[2])]
