"""The gateway of a ModelServe that sleeps while nobody asks, with what leads to it and on from it, as manifests. Pure.

callers ─► Service <name> ─► gateway's pod ─► Service <name>-live-… ─► pods of the live revision, if there are some
                                 ▲
                 Service <name>-gateway-…, without an address of its own ◄── a Job that waits for somebody, or for nobody

The Service of users selects the gateway once it is available, and the pods themselves where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator

from finetune_operator import pod_fields, pod_security
from finetune_operator.api.access import Autoscaling
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.meta import Object
from finetune_operator.modelserve.gate import LOST, asking_job, asking_pod
from finetune_operator.modelserve.objects import PORT, owned, service_url
from finetune_operator.modelserve.pod import GRACE_MARGIN_SECONDS, READINESS, api_key, served_name
from finetune_operator.names import LABEL_GATE, LABEL_GATEWAY, PORT_GATEWAY, object_name, serve_labels, short_hash
from finetune_operator.settings import Settings
from finetune_trainer.contract import pod
from finetune_trainer.contract.gateway import Look, Until
from finetune_trainer.contract.manners import HEALTH

GATEWAY, LIVE = "gateway", "live"  # ends of names
MARK = {LABEL_GATEWAY: "true"}
REQUESTS, LIMITS = {"cpu": "50m", "memory": "64Mi"}, {"memory": "512Mi"}
LOOK_RETRIES = 6
LIVENESS = {"periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6}  # slow to judge: its end cuts what it holds
# It runs where there is room: on the nodes of the engine it would keep just those that are to be given back.
OF_THE_ENGINE = (*pod_fields.OF_SERVING_ALONE, "nodeSelector")


def selector(serve: ModelServe) -> dict[str, str]:
    """Labels of the gateway's pods."""
    return {**serve_labels(serve.metadata.name), **MARK}


def wanted(serve: ModelServe, scaling: Autoscaling, settings: Settings) -> Iterator[Object]:
    """The gateway, and the name by which Jobs find all of its pods, those that end as well."""
    yield deployment(serve, scaling, settings)
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector(serve)}
    yield {"apiVersion": "v1", "kind": "Service", "metadata": meta(serve, GATEWAY), "spec": spec}


def led_through(serve: ModelServe, service: Object) -> Object:
    """The Service of users, so that it leads to the gateway."""
    ports = [{"name": "http", "port": PORT, "targetPort": PORT_GATEWAY}]
    return {**service, "spec": {"selector": selector(serve), "ports": ports}}


def live_service(serve: ModelServe, service: Object) -> Object:
    """Where the gateway finds the pods that serve: what the Service of users would select without it."""
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta(serve, LIVE), "spec": service["spec"]}


def name(serve: ModelServe, end: str) -> str:
    """Name of what belongs to a gateway: one that no ModelServe beside it would have, whose Service has its name."""
    return object_name(serve.metadata.name, end, short_hash(serve.metadata.name, end, length=6))


def deployment(serve: ModelServe, scaling: Autoscaling, settings: Settings) -> Object:
    """One pod, which is replaced before it goes, and ends what it holds."""
    template = _template(serve, scaling, settings)
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    spec = {"replicas": 1, "revisionHistoryLimit": 0, "strategy": rolling}
    spec |= {"selector": {"matchLabels": selector(serve)}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(serve, GATEWAY), "spec": spec}


def _template(serve: ModelServe, scaling: Autoscaling, settings: Settings) -> Object:
    drain = scaling.hold_seconds + serve.spec.drain.seconds  # what is held is still answered
    to = service_url(serve, name(serve, LIVE)).removesuffix("/v1")
    command = ["python", "-m", "finetune_trainer.serving.gateway", "--port", str(PORT), "--to", to]
    command += ["--model", served_name(serve), "--hold", str(scaling.hold_seconds), "--most", str(scaling.hold_requests)]
    auth = serve.spec.auth
    container: Object = {
        "name": GATEWAY,
        "image": settings.operator_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": [*command, "--drain", str(drain)],
        "resources": {"requests": REQUESTS, "limits": LIMITS},
        "env": [{"name": "HOME", "value": "/tmp"}, *([api_key(auth.secret_ref, pod.ENV_API_KEY)] if auth else [])],
        "ports": [{"name": PORT_GATEWAY, "containerPort": PORT}],
        "securityContext": pod_security.container(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        "readinessProbe": {"httpGet": {"path": HEALTH, "port": PORT_GATEWAY}, **READINESS},
        "livenessProbe": {"httpGet": {"path": HEALTH, "port": PORT_GATEWAY}, **LIVENESS},
    }
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": drain + GRACE_MARGIN_SECONDS,
        "securityContext": pod_security.pod(),
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    return {"metadata": pod_fields.metadata(serve.spec.pod_template, selector(serve)), "spec": spec | _common(serve, settings)}


def _common(serve: ModelServe, settings: Settings) -> Object:
    common = pod_fields.spec_fields(serve.spec.pod_template, {})
    common = {name: value for name, value in common.items() if name not in OF_THE_ENGINE}
    return common | pod_fields.pull_secrets(serve.spec.pod_template, settings)


def look(serve: ModelServe, revision: str, job: str, until: Until, scaling: Autoscaling, settings: Settings) -> Object:
    """The Job that ends once somebody waits at the gateway, or nobody has asked for a while. One that fails is made anew."""
    host = f"{name(serve, GATEWAY)}.{serve.metadata.namespace}.svc"
    told = Look(host=host, port=PORT, until=until, idle_seconds=scaling.idle_seconds).model_dump_json(by_alias=True)
    command = ["python", "-m", "finetune_trainer.serving.asked", "--look", told]
    template = asking_pod(serve, settings, "look", command, {**serve_labels(serve.metadata.name), LABEL_GATE: revision})
    template["spec"].pop("nodeSelector", None)
    template["spec"]["containers"][0]["resources"] = {"requests": REQUESTS, "limits": LIMITS}
    return asking_job(owned(serve, job, MARK), template, LOOK_RETRIES, None, LOST)


def meta(serve: ModelServe, end: str) -> Object:
    return owned(serve, name(serve, end), MARK)
