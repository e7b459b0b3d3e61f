"""The pod of a revision: a loader that verifies the model folder, then the engine. It meets Pod Security "restricted"."""

from __future__ import annotations

from finetune_operator import certificates, credentials, pod_fields, pod_security
from finetune_operator.api.access import ApiKey
from finetune_operator.api.modelserve import ModelServe, ModelServeSpec, ResolvedModel
from finetune_operator.meta import Object
from finetune_operator.modelserve.deployed import ENGINE
from finetune_operator.modelserve.engines import ENGINES
from finetune_operator.modelserve.engines.engine import HEALTH, MODEL, Launch, is_served
from finetune_operator.modelserve.startup import budget
from finetune_operator.names import PORT_HTTP, serve_labels, volume_name
from finetune_operator.settings import Settings
from finetune_trainer.contract import pod
from finetune_trainer.contract.places import PVC, claim_of, mounted_path
from finetune_trainer.contract.pod import Owner

TARGET = MODEL.rpartition("/")[0]
STARTUP_PERIOD_SECONDS = 5
GRACE_MARGIN_SECONDS = 10
READINESS = {"periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 2}
BEHIND = 8081  # where an engine listens that has a front
FRONT_REQUESTS, FRONT_LIMITS = {"cpu": "50m", "memory": "64Mi"}, {"memory": "256Mi"}
LOADER_REQUESTS = {"cpu": "100m", "memory": "256Mi"}
LOADER_LIMITS = {"memory": "2Gi"}  # it streams; what it has written counts until it is on the disk


def pod_template(serve: ModelServe, model: ResolvedModel, settings: Settings, *, fronted: bool = True) -> Object:
    """Labels and spec of the pods, without the revision, which is a hash of this. `fronted`: with a front, where the engine
    needs one.
    """
    spec, engine = serve.spec, ENGINES[serve.spec.engine.type]
    front = [_front(spec, settings)] if fronted and not engine.drains and spec.drain.seconds else []
    start = engine.launch(spec, served_name(serve), BEHIND if front else engine.port)
    port = _port(ENGINE, BEHIND) if front else _port(PORT_HTTP, engine.port)
    volumes, mounts = _storage(model, start)
    return {
        "metadata": pod_fields.metadata(spec.pod_template, serve_labels(serve.metadata.name)),
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,  # variables such as VLLM_PORT, made from a Service's name, would mislead an engine
            "terminationGracePeriodSeconds": start.pre_stop_seconds + start.shutdown_seconds + GRACE_MARGIN_SECONDS,
            "securityContext": pod_security.pod(),
            "initContainers": [_loader(spec, model, mounts, settings)],
            "containers": [_engine(serve, model, start, port, mounts, settings), *front],
            "volumes": volumes,
            **pod_fields.spec_fields(spec.pod_template, serve_labels(serve.metadata.name)),
            **pod_fields.pull_secrets(spec.pod_template, settings),
        },
    }


def served_name(serve: ModelServe) -> str:
    """Name of the model in the OpenAI API."""
    return serve.spec.served_name or serve.metadata.name


def _storage(model: ResolvedModel, start: Launch) -> tuple[list[Object], list[Object]]:
    """Volumes, and the engine's mounts of them: whatever holds weights is read-only."""
    volumes: list[Object] = [{"name": "model", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    mounts: list[Object] = [
        {"name": "model", "mountPath": TARGET, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if (claim := claim_of(model.uri)) is not None:
        volume, mount = mounted_claim(claim)
        volumes.append(volume)
        mounts.append(mount)
    if start.shared_memory:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if model.ca_secret_ref is not None:
        volumes.append(certificates.volume(model.ca_secret_ref))
    return volumes + credentials.volumes(secrets(model)), mounts


def secrets(model: ResolvedModel) -> dict[Owner, str]:
    """Whose Secret the loader reads: the engine gets none of it."""
    return {} if model.secret is None else {Owner.MODEL: model.secret}


def mounted_claim(claim: str) -> tuple[Object, Object]:
    """A claim as a pod's volume, and its mount, read-only, where our programs look for it."""
    name = volume_name("claim", claim)
    path = mounted_path(f"{PVC.prefix}{claim}", pod.MOUNTS)
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}, {"name": name, "mountPath": path, "readOnly": True}


def _loader(spec: ModelServeSpec, model: ResolvedModel, mounts: list[Object], settings: Settings) -> Object:
    command = ["python", "-m", "finetune_trainer.serving.load", "--uri", model.uri, "--target", TARGET]
    if ENGINES[spec.engine.type].takes_file:
        command.append("--gguf")
    for option in ("digest", "endpoint", "region"):
        if (value := getattr(model, option)) is not None:
            command += [f"--{option}", value]
    writable = [{k: v for k, v in m.items() if k != "readOnly"} if m["name"] == "model" else m for m in mounts]
    container: Object = {
        "name": "load",
        "image": settings.operator_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "resources": _loader_resources(spec),
        "env": [{"name": k, "value": v} for k, v in ({"HOME": "/tmp"} | certificates.environment(model.ca_secret_ref)).items()],
        "securityContext": pod_security.container(),
        "volumeMounts": [m for m in writable if m["name"] != "shm"],
    }
    if model.ca_secret_ref is not None:
        container["volumeMounts"].append(certificates.mount())
    container["volumeMounts"] += credentials.mounts(secrets(model))
    return container


def _loader_resources(spec: ModelServeSpec) -> Object:
    """What the engine is given is the loader's as well: it runs before, so that costs nothing. Where the engine is given
    nothing, it still says what it takes, as a ResourceQuota wants it of each container.
    """
    return {
        "requests": LOADER_REQUESTS | dict(spec.resources.limits) | dict(spec.resources.requests),
        "limits": LOADER_LIMITS | dict(spec.resources.limits),
    }


def _engine(
    serve: ModelServe, model: ResolvedModel, start: Launch, port: Object, mounts: list[Object], settings: Settings
) -> Object:
    spec = serve.spec
    mine = {e.name: e.value for e in spec.engine.env}
    container: Object = {
        "name": ENGINE,
        "image": spec.engine.image or ENGINES[spec.engine.type].image(settings),
        "imagePullPolicy": settings.image_pull_policy,
        "args": start.args,
        "env": [{"name": k, "value": v} for k, v in ({"HOME": "/tmp"} | start.env | mine).items()],
        "ports": [port],
        "securityContext": pod_security.container(),
        "volumeMounts": mounts,
        **_probes(port, served_name(serve), budget(spec, model).start, _api_key_variable(spec)),
    }
    if spec.auth is not None:
        container["env"].append(api_key(spec.auth.secret_ref, ENGINES[spec.engine.type].api_key_variable))
    if start.command:
        container["command"] = start.command
    if resources := _resources(spec):
        container["resources"] = resources
    if start.pre_stop_seconds:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": start.pre_stop_seconds}}}
    return container


def _front(spec: ModelServeSpec, settings: Settings) -> Object:
    """The container that takes the requests for an engine that does not drain. It is told to stop as the engine's container
    begins its sleep, so it ends first.
    """
    port = _port(PORT_HTTP, ENGINES[spec.engine.type].port)
    command = ["python", "-m", "finetune_trainer.serving.front", "--port", str(port["containerPort"])]
    command += ["--engine", f"http://127.0.0.1:{BEHIND}", "--drain", str(spec.drain.seconds)]
    return {
        "name": "front",
        "image": settings.operator_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "resources": {"requests": FRONT_REQUESTS, "limits": FRONT_LIMITS},
        "env": [{"name": "HOME", "value": "/tmp"}],
        "ports": [port],
        "securityContext": pod_security.container(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        "readinessProbe": {"httpGet": {"path": HEALTH, "port": PORT_HTTP}, **READINESS},
    }


def _port(name: str, number: int) -> Object:
    return {"name": name, "containerPort": number}


def api_key(secret: ApiKey, variable: str) -> Object:
    """An API key as a variable of a container."""
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}


def _api_key_variable(spec: ModelServeSpec) -> str | None:
    return None if spec.auth is None else ENGINES[spec.engine.type].api_key_variable


def _probes(port: Object, name: str, seconds: int, api_key_variable: str | None) -> Object:
    """No pod is ready before its engine has listed the served name, which then can't change while the process lives."""
    health = {"httpGet": {"path": HEALTH, "port": port["name"]}}
    ask = {"exec": {"command": ["sh", "-c", is_served(api_key_variable), f"http://127.0.0.1:{port['containerPort']}", name]}}
    failures = -(-seconds // STARTUP_PERIOD_SECONDS)
    return {
        "startupProbe": {
            **ask,
            "periodSeconds": STARTUP_PERIOD_SECONDS,
            "timeoutSeconds": 15,
            "failureThreshold": failures,
        },
        "readinessProbe": {**health, **READINESS},
        # Slow to judge: an engine that is busy with long prompts may answer late.
        "livenessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
    }


def _resources(spec: ModelServeSpec) -> Object:
    limits = dict(spec.resources.limits)
    if spec.parallelism.gpus:
        limits[spec.parallelism.gpu.resource_name] = str(spec.parallelism.tensor)
    return {k: v for k, v in (("requests", dict(spec.resources.requests)), ("limits", limits)) if v}
