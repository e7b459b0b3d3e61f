"""The pod of a revision: a loader that verifies the model folder, then the engine. It meets Pod Security "restricted"."""

from __future__ import annotations

from finetune_operator import certificates, credentials, pod_fields, pod_security
from finetune_operator.api.access import ApiKey, RedisUrl
from finetune_operator.api.adapters import Lora
from finetune_operator.api.modelserve import ModelServe, ModelServeSpec
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.meta import Object
from finetune_operator.modelserve import adapter_pod
from finetune_operator.modelserve.deployed import ENGINE
from finetune_operator.modelserve.engines import ENGINES
from finetune_operator.modelserve.engines.engine import MODEL, UNTIL_DRAINED, Launch, is_served
from finetune_operator.modelserve.startup import budget
from finetune_operator.names import ANNOTATION_CACHE, LABEL_REVISION, PORT_HTTP, serve_labels
from finetune_operator.settings import Settings
from finetune_trainer.contract import pod
from finetune_trainer.contract.manners import HEALTH
from finetune_trainer.contract.places import PVC, claim_of, mounted_path
from finetune_trainer.contract.pod import Owner

TARGET = MODEL.rpartition("/")[0]
STARTUP_PERIOD_SECONDS = 5
GRACE_MARGIN_SECONDS = 10
READINESS = {"periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 2}
BEHIND = 8081  # where an engine listens that has a front
FRONT_REQUESTS, FRONT_LIMITS = {"cpu": "50m", "memory": "64Mi"}, {"memory": "256Mi"}
REVISION = {"name": pod.ENV_REVISION, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{LABEL_REVISION}']"}}}
LOADER_REQUESTS = {"cpu": "100m", "memory": "256Mi"}
LOADER_LIMITS = {"memory": "2Gi"}  # it streams; what it has written counts until it is on the disk


def pod_template(serve: ModelServe, model: ResolvedModel, settings: Settings, *, fronted: bool = True) -> Object:
    """Labels and spec of the pods, without the revision, which is a hash of this. `fronted`: with a front, where the engine
    needs one.
    """
    spec, engine = serve.spec, ENGINES[serve.spec.engine.type]
    front = [_front(serve, model, settings)] if fronted and _needs_front(spec) else []
    start = engine.launch(spec, served_name(serve), BEHIND if front else engine.port)
    port = _port(ENGINE, BEHIND) if front else _port(PORT_HTTP, engine.port)
    volumes, mounts = _storage(serve, model, start)
    beside = [*front, *([_keeper(serve, model, settings)] if front and spec.lora else [])]
    return {
        "metadata": _metadata(serve),
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,  # variables such as VLLM_PORT, made from a Service's name, would mislead an engine
            "terminationGracePeriodSeconds": start.pre_stop_seconds + start.shutdown_seconds + GRACE_MARGIN_SECONDS,
            "securityContext": pod_security.pod(),
            "initContainers": [_loader(spec, model, mounts, settings)],
            "containers": [_engine(serve, model, start, port, mounts, settings), *beside],
            "volumes": volumes,
            **pod_fields.spec_fields(spec.pod_template, serve_labels(serve.metadata.name)),
            **pod_fields.pull_secrets(spec.pod_template, settings),
        },
    }


def _metadata(serve: ModelServe) -> Object:
    """Labels and annotations. A front is no part of a revision, but that answers are kept is asked for, so it is."""
    found = pod_fields.metadata(serve.spec.pod_template, serve_labels(serve.metadata.name))
    if (cache := serve.spec.response_cache) is not None:
        found["annotations"] = {**found.get("annotations", {}), ANNOTATION_CACHE: cache.model_dump_json(by_alias=True)}
    return found


def served_name(serve: ModelServe) -> str:
    """Name of the model in the OpenAI API."""
    return serve.spec.served_name or serve.metadata.name


def _needs_front(spec: ModelServeSpec) -> bool:
    """Where the engine's API is not as OpenAI's or its API for adapters must be out of reach, where it can't drain, and where
    answers are kept.
    """
    engine = ENGINES[spec.engine.type]
    if spec.lora is not None or spec.response_cache is not None:
        return True
    return engine.manners is not None or (not engine.drains and spec.drain.seconds > 0)


def _storage(serve: ModelServe, model: ResolvedModel, start: Launch) -> tuple[list[Object], list[Object]]:
    """Volumes, and the engine's mounts of them: whatever holds weights is read-only."""
    volumes: list[Object] = [{"name": "model", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    mounts = _model_mounts(model)
    if (claim := claim_of(model.uri)) is not None:
        volumes.append(mounted_claim(claim)[0])
    if serve.spec.lora is not None:
        volumes += adapter_pod.volumes(serve, volumes)
        mounts.append(adapter_pod.READ_ONLY)
    if start.shared_memory:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if model.ca_secret_ref is not None:
        volumes.append(certificates.volume(model.ca_secret_ref))
    return volumes + credentials.volumes(secrets(model)), mounts


def _model_mounts(model: ResolvedModel) -> list[Object]:
    mounts: list[Object] = [
        {"name": "model", "mountPath": TARGET, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    claim = claim_of(model.uri)
    return mounts if claim is None else [*mounts, mounted_claim(claim)[1]]


def secrets(model: ResolvedModel) -> dict[Owner, str]:
    """Whose Secret the loader reads: the engine gets none of it."""
    return {} if model.secret is None else {Owner.MODEL: model.secret}


def mounted_claim(claim: str) -> tuple[Object, Object]:
    """A claim as a pod's volume, and its mount, read-only, where our programs look for it."""
    volume, path = adapter_pod.claim_volume(claim), mounted_path(f"{PVC.prefix}{claim}", pod.MOUNTS)
    return volume, {"name": volume["name"], "mountPath": path, "readOnly": True}


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
        "volumeMounts": [m for m in writable if m["name"] not in ("shm", "adapters")],
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
        **_probes(port, served_name(serve), budget(spec, model).start, spec),
    }
    variable = ENGINES[spec.engine.type].api_key_variable
    if spec.auth is not None and variable is not None:
        container["env"].append(api_key(spec.auth.secret_ref, variable))
    if start.command:
        container["command"] = start.command
    if resources := _resources(spec):
        container["resources"] = resources
    if start.pre_stop_seconds:
        container["lifecycle"] = {"preStop": _pre_stop(spec, start.pre_stop_seconds, fronted=port["name"] == ENGINE)}
    return container


def _pre_stop(spec: ModelServeSpec, seconds: int, *, fronted: bool) -> Object:
    """What is waited for before the engine is told to stop: its front's end, which is no part of a revision, or the time."""
    if not fronted:
        return {"sleep": {"seconds": seconds}}
    return {"exec": {"command": ["sh", "-c", UNTIL_DRAINED, str(ENGINES[spec.engine.type].port), str(seconds)]}}


def _front(serve: ModelServe, model: ResolvedModel, settings: Settings) -> Object:
    """The container that takes the requests for an engine that does not drain, has manners, or adapters. It is told to stop as
    the engine's container begins its sleep, so it ends first.
    """
    spec, engine = serve.spec, ENGINES[serve.spec.engine.type]
    port = _port(PORT_HTTP, engine.port)
    command = ["python", "-m", "finetune_trainer.serving.front", "--port", str(port["containerPort"])]
    command += ["--engine", f"http://127.0.0.1:{BEHIND}", "--drain", str(spec.drain.seconds)]
    env: list[Object] = [{"name": "HOME", "value": "/tmp"}]
    mounts: list[Object] = [{"name": "tmp", "mountPath": "/tmp"}]
    if spec.lora is not None:
        command += ["--adapters", adapter_pod.FOLDER]
        mounts.append(adapter_pod.READ_ONLY)
    elif engine.manners is not None:
        manners = engine.manners.model_copy(update={"model": served_name(serve)})
        command += ["--manners", manners.model_dump_json(by_alias=True, exclude_defaults=True)]
        if manners.lacks is not None:
            command += ["--folder", MODEL]
            command += [] if spec.engine.max_model_length is None else ["--context", str(spec.engine.max_model_length)]
            mounts = _model_mounts(model)
    cache, lacks = spec.response_cache, engine.manners is not None and engine.manners.lacks is not None
    if spec.auth is not None and (lacks or cache is not None):
        env.append(api_key(spec.auth.secret_ref, pod.ENV_API_KEY))
    if cache is not None:
        command += ["--cache-seconds", str(cache.ttl_seconds)]
        env += [api_key(cache.secret_ref, pod.ENV_CACHE_URL), REVISION]
    return {
        "name": "front",
        "image": settings.operator_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "resources": {"requests": FRONT_REQUESTS, "limits": FRONT_LIMITS},
        "env": env,
        "ports": [port],
        "securityContext": pod_security.container(),
        "volumeMounts": mounts,
        "readinessProbe": {"httpGet": {"path": HEALTH, "port": PORT_HTTP}, **READINESS},
    }


def _keeper(serve: ModelServe, model: ResolvedModel, settings: Settings) -> Object:
    """The container that keeps the adapters."""
    spec, claims = serve.spec, (serve.spec.lora or Lora()).claims
    key = [] if spec.auth is None else [api_key(spec.auth.secret_ref, pod.ENV_API_KEY)]
    mounts = [*_model_mounts(model), *(mounted_claim(claim)[1] for claim in claims if claim != claim_of(model.uri))]
    return adapter_pod.keeper(serve, model, f"http://127.0.0.1:{BEHIND}", mounts, key, settings)


def _port(name: str, number: int) -> Object:
    return {"name": name, "containerPort": number}


def api_key(secret: ApiKey | RedisUrl, variable: str) -> Object:
    """A key of a Secret as a variable of a container."""
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}


def _probes(port: Object, name: str, seconds: int, spec: ModelServeSpec) -> Object:
    """No pod is ready before its engine has listed the served name, which then can't change while the process lives. An engine
    on the loopback is asked from within; whether it is ready is asked of its front alone, which asks it.
    """
    engine, url = ENGINES[spec.engine.type], f"http://127.0.0.1:{port['containerPort']}"
    lacks = engine.manners is not None and engine.manners.lacks is not None
    script = is_served(None if spec.auth is None else engine.api_key_variable)
    ask: Object = {"exec": {"command": ["sh", "-c", engine.healthy if lacks else script, url, name]}}
    health: Object = {"httpGet": {"path": HEALTH, "port": port["name"]}}
    ready = {"readinessProbe": {**health, **READINESS}}
    if spec.lora is not None or lacks:
        health, ready = {"exec": {"command": ["sh", "-c", engine.healthy, url]}}, {}
    failures = -(-seconds // STARTUP_PERIOD_SECONDS)
    return {
        "startupProbe": {
            **ask,
            "periodSeconds": STARTUP_PERIOD_SECONDS,
            "timeoutSeconds": 15,
            "failureThreshold": failures,
        },
        **ready,
        # Slow to judge: an engine that is busy with long prompts may answer late.
        "livenessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
    }


def _resources(spec: ModelServeSpec) -> Object:
    limits = dict(spec.resources.limits)
    if spec.parallelism.gpus:
        limits[spec.parallelism.gpu.resource_name] = str(spec.parallelism.tensor)
    return {k: v for k, v in (("requests", dict(spec.resources.requests)), ("limits", limits)) if v}
