"""What a pod has where adapters are served: the container that keeps them, and where they lie. Pure.

ConfigMap <name>-adapters ─► keeper ─► /mnt/adapters ─► engine, front      (the keeper alone writes there)
claims, the model's credentials ─┘
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from finetune_operator import certificates, credentials, pod_security
from finetune_operator.api.adapters import Lora
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.decision import NotePod
from finetune_operator.meta import Object, goes_on
from finetune_operator.modelserve.engines.engine import MODEL
from finetune_operator.names import ANNOTATION_TOLD, object_name, volume_name
from finetune_operator.settings import Settings
from finetune_trainer.contract.places import claim_of
from finetune_trainer.contract.pod import Owner
from finetune_trainer.contract.served_adapters import WANTED

KEEPER = "adapters"  # the container
FOLDER, WANTED_FOLDER = "/mnt/adapters", "/etc/finetune-adapters"
REQUESTS, LIMITS = {"cpu": "50m", "memory": "128Mi"}, {"memory": "1Gi"}  # copying files counts until they are on the disk
READ_ONLY: Object = {"name": "adapters", "mountPath": FOLDER, "readOnly": True}


def config_map_name(serve: ModelServe) -> str:
    """The ConfigMap that says which adapters pods are to have."""
    return object_name(serve.metadata.name, "adapters")


def volumes(serve: ModelServe, claims: list[Object]) -> list[Object]:
    """Where adapters are copied to, and what is wanted; `claims` are the volumes that the pod has of claims already."""
    named = {"name": config_map_name(serve), "optional": True}
    there = {volume["name"] for volume in claims}
    more = [v for v in (claim_volume(c) for c in (serve.spec.lora or Lora()).claims) if v["name"] not in there]
    return [{"name": "adapters", "emptyDir": {}}, {"name": "wanted", "configMap": named}, *more]


def claim_volume(claim: str) -> Object:
    return {"name": volume_name("claim", claim), "persistentVolumeClaim": {"claimName": claim}}


def keeper(
    serve: ModelServe, model: ResolvedModel, engine: str, mounts: list[Object], key: list[Object], settings: Settings
) -> Object:
    """The container that keeps the adapters of its pod as they are wanted. `engine` is the engine's URL, `mounts` are those of
    model and claims, and `key` the variable with the engine's API key, where it asks for one.
    """
    room = serve.spec.lora or Lora()
    command = ["python", "-m", "finetune_trainer.serving.adapters", "--wanted", f"{WANTED_FOLDER}/{WANTED}"]
    command += ["--folder", FOLDER, "--engine", engine, "--base", MODEL, "--max-rank", str(room.max_rank)]
    command += ["--drain", str(serve.spec.drain.seconds)]
    for option in ("endpoint", "region"):
        if (value := getattr(model, option)) is not None:
            command += [f"--{option}", value]
    secrets = {} if model.secret is None else {Owner.MODEL: model.secret}
    variables = {"HOME": "/tmp"} | certificates.environment(model.ca_secret_ref)
    mounts = [*mounts, {"name": "adapters", "mountPath": FOLDER}, {"name": "wanted", "mountPath": WANTED_FOLDER}]
    mounts += [] if model.ca_secret_ref is None else [certificates.mount()]
    return {
        "name": KEEPER,
        "image": settings.operator_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "resources": {"requests": REQUESTS, "limits": LIMITS},
        "env": [*({"name": k, "value": v} for k, v in variables.items()), *key],
        "securityContext": pod_security.container(),
        "volumeMounts": [*mounts, *credentials.mounts(secrets)],
    }


def has_room(template: Object) -> bool:
    """Whether the pods of a template, or a pod, keep adapters."""
    return any(container["name"] == KEEPER for container in template["spec"].get("containers") or [])


def untold(pods: Iterable[Object], version: str) -> Iterator[NotePod]:
    """Whom to note this version of the list for: pods that keep adapters. A kubelet reads again what a pod mounts when the pod
    is changed, and otherwise within a minute or so.
    """
    for pod in pods:
        meta = pod["metadata"]
        is_told = (meta.get("annotations") or {}).get(ANNOTATION_TOLD) == version
        if "spec" in pod and has_room(pod) and goes_on(pod) and not is_told:
            yield NotePod(meta["name"], meta["uid"], {ANNOTATION_TOLD: version})


def reaches(serve: ModelServe, model: ResolvedModel, uri: str) -> bool:
    """Whether pods find an adapter there: on a claim that they mount, or in the model's bucket, with its credentials."""
    claim = claim_of(uri)
    if claim is not None:
        return claim in {claim_of(model.uri), *(serve.spec.lora or Lora()).claims}
    return uri.split("/")[:3] == model.uri.split("/")[:3]
